//! Replaces calls of local functions by the functions' bodies, since tract does not read local functions.
//!
//! Every name in a copied body, sub-graphs included, is made unique in the whole model, so that the result needs no
//! scoping rule beyond ONNX's own.

use densessm_proto::onnx::{
    AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto,
    attribute_proto::AttributeType,
};
use std::collections::{HashMap, HashSet};

/// The largest depth of nested calls.
const MAX_CALL_DEPTH: usize = 64;
/// The largest number of nodes of a model whose calls are replaced.
const MAX_NODES: usize = 1 << 20;

/// The reason why a model's functions cannot be replaced by their bodies.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum InlineError {
    /// Two functions have one identity.
    #[error("function `{function}`: defined twice")]
    Duplicate {
        /// Its identity.
        function: String,
    },
    /// A function calls itself, directly or through others.
    #[error("function `{function}`: calls itself")]
    Recursive {
        /// Its identity.
        function: String,
    },
    /// Calls nest too deeply, or the bodies have too many nodes in all.
    #[error("function `{function}`: expected at most {MAX_CALL_DEPTH} nested calls and {MAX_NODES} nodes, got more")]
    TooLarge {
        /// The function that was being copied.
        function: String,
    },
    /// A function was written against another version of the default operator set.
    #[error("function `{function}`: operator set, expected {expected} as in the model, got {got}")]
    OperatorSet {
        /// Its identity.
        function: String,
        /// The model's version.
        expected: i64,
        /// The function's.
        got: i64,
    },
    /// A call has more operands or results than the function.
    #[error("node `{node}`: {what} of function `{function}`, expected at most {expected}, got {got}")]
    Arity {
        /// The calling node.
        node: String,
        /// The function's identity.
        function: String,
        /// Inputs or outputs.
        what: &'static str,
        /// The function's count.
        expected: usize,
        /// The call's.
        got: usize,
    },
    /// A body reads a name that no input or earlier node defines.
    #[error("function `{function}`: reads `{value}`, expected an input or an earlier node's output")]
    Unknown {
        /// The function's identity.
        function: String,
        /// The name.
        value: String,
    },
    /// A body expects an attribute of another type than the call has.
    #[error("function `{function}`: attribute `{attribute}`, expected type {expected}, got {got}")]
    AttributeType {
        /// The function's identity.
        function: String,
        /// The attribute's name.
        attribute: String,
        /// The number of the type the body expects.
        expected: i32,
        /// The number of the type given.
        got: i32,
    },
}

/// The identity of a function: domain, name, overload.
type Key = (String, String, String);

/// The names of a body, each with its name in the model; empty for an operand that is left out.
type Names = HashMap<String, String>;

/// Replaces every call of a local function, in the graph and in its sub-graphs, and removes the functions. Calls of
/// operators for which `has_kernel`, given domain and name, is true stay as they are.
pub(crate) fn inline(model: &mut ModelProto, has_kernel: impl Fn(&str, &str) -> bool) -> Result<(), InlineError> {
    let functions = std::mem::take(&mut model.functions);
    let opset = default_opset(&model.opset_import);
    let mut known = HashMap::new();
    for function in functions.iter().filter(|f| !has_kernel(&domain(&f.domain), &f.name)) {
        let key = (domain(&function.domain), function.name.clone(), function.overload.clone());
        let identity = identity(&key);
        if let (Some(expected), Some(got)) = (opset, default_opset(&function.opset_import))
            && expected != got
        {
            return Err(InlineError::OperatorSet { function: identity, expected, got });
        }
        if known.insert(key, function).is_some() {
            return Err(InlineError::Duplicate { function: identity });
        }
    }
    if let Some(graph) = &mut model.graph {
        let mut taken = HashSet::new();
        collect_names(graph, &mut taken);
        Inliner { functions: known, taken, stack: Vec::new(), nodes: 0 }.graph(graph)?;
    }
    Ok(())
}

fn domain(domain: &str) -> String {
    if domain == "ai.onnx" { String::new() } else { domain.to_owned() }
}

fn default_opset(sets: &[OperatorSetIdProto]) -> Option<i64> {
    sets.iter().find(|set| domain(&set.domain).is_empty()).map(|set| set.version)
}

fn identity((domain, name, overload): &Key) -> String {
    let separator = if overload.is_empty() { "" } else { ":" };
    format!("{domain}::{name}{separator}{overload}")
}

/// Every name of a value or a node in a graph and its sub-graphs.
fn collect_names(graph: &GraphProto, names: &mut HashSet<String>) {
    names.extend(graph.input.iter().map(|input| input.name.clone()));
    names.extend(graph.initializer.iter().map(|tensor| tensor.name.clone()));
    for node in &graph.node {
        names.insert(node.name.clone());
        names.extend(node.output.iter().cloned());
        for sub_graph in node.attribute.iter().filter_map(|attribute| attribute.g.as_ref()) {
            collect_names(sub_graph, names);
        }
    }
}

struct Inliner<'m> {
    functions: HashMap<Key, &'m FunctionProto>,
    taken: HashSet<String>,
    /// The calls that are being replaced, outermost first.
    stack: Vec<Key>,
    /// Nodes written.
    nodes: usize,
}

impl<'m> Inliner<'m> {
    /// Replaces the calls in a graph whose names are already those of the model.
    fn graph(&mut self, graph: &mut GraphProto) -> Result<(), InlineError> {
        let nodes = std::mem::take(&mut graph.node);
        graph.node = self.all(nodes)?;
        Ok(())
    }

    fn all(&mut self, nodes: Vec<NodeProto>) -> Result<Vec<NodeProto>, InlineError> {
        let mut written = Vec::with_capacity(nodes.len());
        for node in nodes {
            self.node(node, &mut written)?;
        }
        Ok(written)
    }

    fn node(&mut self, mut node: NodeProto, written: &mut Vec<NodeProto>) -> Result<(), InlineError> {
        let key = (domain(&node.domain), node.op_type.clone(), node.overload.clone());
        if let Some(&function) = self.functions.get(&key) {
            return self.call(key, function, &node, written);
        }
        for attribute in &mut node.attribute {
            if let Some(sub_graph) = &mut attribute.g {
                self.graph(sub_graph)?;
            }
        }
        written.push(node);
        Ok(())
    }

    fn call(
        &mut self,
        key: Key,
        function: &'m FunctionProto,
        call: &NodeProto,
        written: &mut Vec<NodeProto>,
    ) -> Result<(), InlineError> {
        let identity = identity(&key);
        for (what, expected, got) in
            [("inputs", function.input.len(), call.input.len()), ("outputs", function.output.len(), call.output.len())]
        {
            if got > expected {
                let node = call.name.clone();
                return Err(InlineError::Arity { node, function: identity, what, expected, got });
            }
        }
        if self.stack.contains(&key) {
            return Err(InlineError::Recursive { function: identity });
        }
        if self.stack.len() == MAX_CALL_DEPTH {
            return Err(InlineError::TooLarge { function: identity });
        }
        self.stack.push(key);
        let body = Body { identity, prefix: prefix(call), attributes: attributes(function, call) };
        let nodes = self.body(&body, function, call)?;
        written.extend(self.all(nodes)?);
        self.stack.pop();
        Ok(())
    }

    /// The nodes of a function, under the caller's names.
    fn body(
        &mut self,
        body: &Body<'_>,
        function: &FunctionProto,
        call: &NodeProto,
    ) -> Result<Vec<NodeProto>, InlineError> {
        let mut names: Names = HashMap::new();
        let actual = call.input.iter().cloned().chain(std::iter::repeat_with(String::new));
        names.extend(function.input.iter().cloned().zip(actual));
        // A node that defines a result defines it under the caller's name. A result that is an operand, or that the caller
        // requests twice, has a name already and is copied by an Identity node.
        let mut results: HashMap<&str, &str> = HashMap::new();
        let mut copied = Vec::new();
        for (formal, actual) in function.output.iter().zip(&call.output).filter(|(_, actual)| !actual.is_empty()) {
            if names.contains_key(formal) || results.contains_key(formal.as_str()) {
                copied.push((formal, actual));
            } else {
                results.insert(formal, actual);
            }
        }
        let mut nodes = Vec::with_capacity(function.node.len());
        for node in &function.node {
            let mut copy = self.copy(body, node, &names)?;
            for (formal, actual) in node.output.iter().zip(&mut copy.output).filter(|(formal, _)| !formal.is_empty()) {
                *actual = match results.get(formal.as_str()) {
                    Some(result) => (*result).to_owned(),
                    None => self.fresh(body, formal),
                };
                names.insert(formal.clone(), actual.clone());
            }
            nodes.push(copy);
        }
        for formal in results.keys() {
            lookup(body, &names, formal)?;
        }
        for (formal, actual) in copied {
            let input = lookup(body, &names, formal)?;
            self.count(body)?;
            nodes.push(NodeProto {
                name: self.fresh(body, "Identity"),
                op_type: "Identity".to_owned(),
                input: vec![input],
                output: vec![actual.clone()],
                ..NodeProto::default()
            });
        }
        Ok(nodes)
    }

    /// A copy of a node with inputs, attributes and sub-graphs renamed for the model, but not its outputs.
    fn copy(&mut self, body: &Body<'_>, node: &NodeProto, names: &Names) -> Result<NodeProto, InlineError> {
        self.count(body)?;
        let mut input = node.input.iter().map(|name| lookup(body, names, name)).collect::<Result<Vec<_>, _>>()?;
        while input.last().is_some_and(String::is_empty) {
            input.pop();
        }
        let mut attribute = Vec::with_capacity(node.attribute.len());
        for own in &node.attribute {
            attribute.extend(self.attribute(body, own, names)?);
        }
        let label = if node.name.is_empty() { &node.op_type } else { &node.name };
        Ok(NodeProto { name: self.fresh(body, label), input, attribute, ..node.clone() })
    }

    /// The value of an attribute for this call; none if it refers to an attribute that the call does not have.
    fn attribute(
        &mut self,
        body: &Body<'_>,
        own: &AttributeProto,
        names: &Names,
    ) -> Result<Option<AttributeProto>, InlineError> {
        if own.ref_attr_name.is_empty() {
            let g = own.g.as_ref().map(|graph| self.sub_graph(body, graph, names)).transpose()?;
            return Ok(Some(AttributeProto { g, ..own.clone() }));
        }
        let Some(&given) = body.attributes.get(own.ref_attr_name.as_str()) else { return Ok(None) };
        let untyped = i32::from(AttributeType::Undefined);
        if own.r#type != untyped && given.r#type != untyped && own.r#type != given.r#type {
            return Err(InlineError::AttributeType {
                function: body.identity.clone(),
                attribute: own.ref_attr_name.clone(),
                expected: own.r#type,
                got: given.r#type,
            });
        }
        Ok(Some(AttributeProto { name: own.name.clone(), ..given.clone() }))
    }

    /// A copy of a sub-graph of a body: its own values get fresh names, and captured values the names of the model.
    fn sub_graph(&mut self, body: &Body<'_>, graph: &GraphProto, outer: &Names) -> Result<GraphProto, InlineError> {
        let mut names = outer.clone();
        let mut copy = GraphProto { node: Vec::new(), value_info: Vec::new(), ..graph.clone() };
        for name in copy.input.iter_mut().map(|input| &mut input.name) {
            let fresh = self.fresh(body, name);
            names.insert(std::mem::replace(name, fresh.clone()), fresh);
        }
        for name in copy.initializer.iter_mut().map(|tensor| &mut tensor.name) {
            // An initializer with the name of an input is the input's default.
            let fresh = match graph.input.iter().any(|input| input.name == *name) {
                true => names[name].clone(),
                false => self.fresh(body, name),
            };
            names.insert(std::mem::replace(name, fresh.clone()), fresh);
        }
        for node in &graph.node {
            let mut inner = self.copy(body, node, &names)?;
            for name in inner.output.iter_mut().filter(|name| !name.is_empty()) {
                let fresh = self.fresh(body, name);
                names.insert(std::mem::replace(name, fresh.clone()), fresh);
            }
            copy.node.push(inner);
        }
        for output in &mut copy.output {
            output.name = lookup(body, &names, &output.name)?;
        }
        Ok(copy)
    }

    fn count(&mut self, body: &Body<'_>) -> Result<(), InlineError> {
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            return Err(InlineError::TooLarge { function: body.identity.clone() });
        }
        Ok(())
    }

    /// A name that is not used in the model yet.
    fn fresh(&mut self, body: &Body<'_>, name: &str) -> String {
        let plain = format!("{}/{name}", body.prefix);
        let mut fresh = plain.clone();
        let mut number = 1;
        while self.taken.contains(&fresh) {
            number += 1;
            fresh = format!("{plain}.{number}");
        }
        self.taken.insert(fresh.clone());
        fresh
    }
}

/// A function's body that is being copied for one call.
struct Body<'c> {
    identity: String,
    prefix: String,
    attributes: HashMap<&'c str, &'c AttributeProto>,
}

fn lookup(body: &Body<'_>, names: &Names, name: &str) -> Result<String, InlineError> {
    if name.is_empty() {
        return Ok(String::new());
    }
    let unknown = || InlineError::Unknown { function: body.identity.clone(), value: name.to_owned() };
    names.get(name).cloned().ok_or_else(unknown)
}

/// The prefix of the names of the nodes that replace a call.
fn prefix(call: &NodeProto) -> String {
    let named = std::iter::once(&call.name).chain(&call.output).find(|name| !name.is_empty());
    named.unwrap_or(&call.op_type).clone()
}

/// The call's attributes, and the function's defaults for those that the call leaves out.
fn attributes<'c>(function: &'c FunctionProto, call: &'c NodeProto) -> HashMap<&'c str, &'c AttributeProto> {
    function
        .attribute_proto
        .iter()
        .chain(&call.attribute)
        .map(|attribute| (attribute.name.as_str(), attribute))
        .collect()
}
