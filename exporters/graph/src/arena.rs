//! The tables that hold a graph's values, nodes and bodies while it is written.
//!
//! One table of values serves the main graph, the sub-graphs and the functions, so a handle is no more than an index.
//! A *root* body (the main graph or a function) owns the names of all bodies nested in it.

use crate::{Attribute, Error, TensorType, Weight, error::Line, literal::Literal};
use std::collections::{HashMap, HashSet};

pub(crate) type ValueId = usize;
pub(crate) type BodyId = usize;

pub(crate) const MAIN: BodyId = 0;
/// The id of a value that could not be made. The graph keeps the reason, and whatever depends on it is skipped.
pub(crate) const POISON: ValueId = ValueId::MAX;

#[derive(Debug)]
pub(crate) struct ValueInfo {
    pub(crate) name: String,
    pub(crate) tensor: TensorType,
    pub(crate) body: BodyId,
    pub(crate) location: Line,
}

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) op: &'static str,
    /// Empty for ONNX's own operators.
    pub(crate) domain: &'static str,
    pub(crate) overload: String,
    pub(crate) inputs: Vec<Option<ValueId>>,
    pub(crate) outputs: Vec<ValueId>,
    pub(crate) attributes: Vec<(&'static str, Attribute)>,
    pub(crate) sub_graph: Option<BodyId>,
    pub(crate) location: Line,
}

#[derive(Debug, Default)]
pub(crate) struct Body {
    /// The enclosing body, whose values this one may also read: set for sub-graphs, not for functions.
    pub(crate) parent: Option<BodyId>,
    pub(crate) inputs: Vec<ValueId>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) outputs: Vec<ValueId>,
    pub(crate) literals: Vec<(ValueId, Literal)>,
    /// The results of the nodes emitted here, by operation and operands.
    pub(crate) emitted: HashMap<String, Vec<ValueId>>,
    /// How often the builder has generated each name; kept in the root body.
    generated: HashMap<String, usize>,
    /// Names that the user has declared and may not declare again; kept in the root body.
    declared: HashSet<String>,
}

/// A function: an operator's body, specialised for one combination of attributes and operand types.
#[derive(Debug)]
pub(crate) struct Function {
    pub(crate) operator: &'static str,
    pub(crate) domain: &'static str,
    pub(crate) version: i64,
    pub(crate) overload: String,
    pub(crate) attributes: Vec<(&'static str, Attribute)>,
    pub(crate) operands: Vec<Option<TensorType>>,
    pub(crate) body: BodyId,
}

#[derive(Debug)]
pub(crate) struct Arena {
    pub(crate) values: Vec<ValueInfo>,
    pub(crate) bodies: Vec<Body>,
    pub(crate) functions: Vec<Function>,
    /// Weights of the main graph, each with the values of its initializers.
    pub(crate) weights: Vec<(Vec<ValueId>, Weight)>,
    /// The body that is being written.
    pub(crate) current: BodyId,
    /// The open scopes, named as in the checkpoint: `backbone`, `layers.3`, `mixer`.
    pub(crate) path: Vec<String>,
    pub(crate) error: Option<Error>,
}

impl Arena {
    pub(crate) fn new() -> Self {
        Self {
            values: Vec::new(),
            bodies: vec![Body::default()],
            functions: Vec::new(),
            weights: Vec::new(),
            current: MAIN,
            path: Vec::new(),
            error: None,
        }
    }

    /// Records an error unless there is one already: later ones may be consequences of the first.
    pub(crate) fn fail(&mut self, what: impl Into<String>, problem: impl Into<String>, at: Line) {
        self.error.get_or_insert_with(|| Error::new(what, problem, at));
    }

    pub(crate) fn add_value(&mut self, name: String, tensor: TensorType, body: BodyId, location: Line) -> ValueId {
        self.values.push(ValueInfo { name, tensor, body, location });
        self.values.len() - 1
    }

    pub(crate) fn add_body(&mut self, parent: Option<BodyId>) -> BodyId {
        self.bodies.push(Body { parent, ..Body::default() });
        self.bodies.len() - 1
    }

    /// The main graph or function that a body is nested in.
    pub(crate) fn root(&self, mut body: BodyId) -> BodyId {
        while let Some(parent) = self.bodies[body].parent {
            body = parent;
        }
        body
    }

    /// Whether a node of body `reader` may read a value of body `owner`.
    pub(crate) fn sees(&self, reader: BodyId, owner: BodyId) -> bool {
        let mut body = Some(reader);
        while let Some(id) = body {
            if id == owner {
                return true;
            }
            body = self.bodies[id].parent;
        }
        false
    }

    /// A name in the open scopes, written as checkpoints do: `backbone.layers.3.mixer.weight`.
    pub(crate) fn checkpoint_name(&self, name: &str) -> String {
        self.path.iter().map(String::as_str).chain([name]).collect::<Vec<_>>().join(".")
    }

    /// A fresh node name in the open scopes: `backbone/layers/3/mixer/MatMul`, then `…/MatMul_1`.
    pub(crate) fn node_name(&mut self, leaf: &str) -> String {
        let path = self.path.iter().flat_map(|scope| scope.split('.')).chain([leaf]).collect::<Vec<_>>().join("/");
        let root = self.root(self.current);
        let count = self.bodies[root].generated.entry(path.clone()).or_insert(0);
        *count += 1;
        if *count == 1 { path } else { format!("{path}_{}", *count - 1) }
    }

    /// Records a name that the user declares; false if it was declared before.
    pub(crate) fn declare(&mut self, name: &str) -> bool {
        let root = self.root(self.current);
        self.bodies[root].declared.insert(name.to_owned())
    }
}
