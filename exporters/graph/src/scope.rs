//! Scopes: where nodes get their names and weights are declared.

use crate::{
    DType, Dim, Graph, Part, Prepare, TensorType, Value, Weight,
    arena::{Literal, MAIN},
    graph::Emit,
    value::POISON,
};
use std::panic::Location;

/// A module of the model: nodes emitted in it carry its path, weights declared in it are the checkpoint's.
///
/// `p.scope("layers.3", |p| p.scope("mixer", |p| p.weight("D", [d])))` declares the checkpoint's tensor
/// `layers.3.mixer.D`; a node emitted there is `layers/3/mixer/…`.
#[derive(Clone, Copy, Debug)]
pub struct Scope<'g> {
    graph: &'g Graph,
}

impl<'g> Scope<'g> {
    pub(crate) fn new(graph: &'g Graph) -> Self {
        Self { graph }
    }

    pub(crate) fn graph(self) -> &'g Graph {
        self.graph
    }

    /// Opens a module inside this one for the length of `body`. The same module cannot be opened twice.
    #[track_caller]
    pub fn scope<R>(self, name: &str, body: impl FnOnce(Scope<'g>) -> R) -> R {
        {
            let mut arena = self.graph.arena.borrow_mut();
            let path = arena.checkpoint_name(name);
            if !arena.declare(&format!("scope {path}")) {
                arena.fail(format!("scope `{path}`"), "opened twice", Location::caller());
            }
        }
        self.within(name, body)
    }

    /// Opens a scope that is no module of the checkpoint: its name may recur.
    pub(crate) fn within<R>(self, name: &str, body: impl FnOnce(Scope<'g>) -> R) -> R {
        self.graph.arena.borrow_mut().path.push(name.to_owned());
        let result = body(self);
        self.graph.arena.borrow_mut().path.pop();
        result
    }

    /// A weight as the checkpoint has it, with its shape there.
    #[track_caller]
    pub fn weight<const N: usize>(self, name: &str, shape: [usize; N]) -> Value<'g> {
        self.weight_as(name, shape, Prepare::AsIs)
    }

    /// A matrix `[out, in]` of the checkpoint as `[in, out]`, transposed once at export.
    #[track_caller]
    pub fn weight_t(self, name: &str, shape: [usize; 2]) -> Value<'g> {
        self.weight_as(name, shape, Prepare::Transpose)
    }

    /// Matrices `[outᵢ, in]` of the checkpoint side by side as one `[in, Σ outᵢ]`, transposed once at export: one
    /// product in the place of several on the same operand.
    #[track_caller]
    pub fn weights_t(self, matrices: &[(&str, [usize; 2])]) -> Value<'g> {
        let parts: Vec<(&str, &[usize])> = matrices.iter().map(|(name, shape)| (*name, shape.as_slice())).collect();
        self.declare_weight(&parts, Prepare::Transpose)
    }

    /// A weight prepared at export; `shape` is the checkpoint's.
    #[track_caller]
    pub fn weight_as<const N: usize>(self, name: &str, shape: [usize; N], prepare: Prepare) -> Value<'g> {
        self.declare_weight(&[(name, &shape)], prepare)
    }

    #[track_caller]
    fn declare_weight(self, parts: &[(&str, &[usize])], prepare: Prepare) -> Value<'g> {
        let location = Location::caller();
        let mut arena = self.graph.arena.borrow_mut();
        // Behind the first, names are those in the scope.
        let mut named = parts.iter().map(|(name, _)| (*name).to_owned()).collect::<Vec<_>>();
        if let Some(first) = named.first_mut() {
            *first = arena.checkpoint_name(first);
        }
        let name = named.join("+");
        let parts: Vec<Part> = parts
            .iter()
            .map(|(name, shape)| Part { name: arena.checkpoint_name(name), shape: shape.to_vec() })
            .collect();
        let what = format!("weight `{name}`");
        if arena.root(arena.current) != MAIN {
            arena.fail(what, "declared in an operator's body; hand it in as an operand", location);
            return Value::new(self.graph, POISON);
        }
        for part in &parts {
            let what = format!("weight `{}`", part.name);
            if !arena.declare(&what) {
                arena.fail(what, "declared twice", location);
                return Value::new(self.graph, POISON);
            }
        }
        let stored = match prepare.stored(&parts) {
            Ok(stored) => stored,
            Err(problem) => {
                arena.fail(what, problem, location);
                return Value::new(self.graph, POISON);
            }
        };
        let weight = Weight { name: name.clone(), parts, prepare, stored, dtype: DType::F32 };
        let id = arena.add_value(name, weight.tensor_type(), MAIN);
        arena.weights.push((id, weight, location));
        Value::new(self.graph, id)
    }

    /// A constant fp32 scalar.
    #[track_caller]
    pub fn scalar(self, value: f32) -> Value<'g> {
        let tensor = TensorType::new(DType::F32, [0_usize; 0]);
        self.literal(format!("literal/{value:?}"), tensor, value.to_le_bytes().to_vec())
    }

    /// A constant int64 scalar.
    #[track_caller]
    pub fn integer(self, value: i64) -> Value<'g> {
        let tensor = TensorType::new(DType::I64, [0_usize; 0]);
        self.literal(format!("literal/{value}"), tensor, value.to_le_bytes().to_vec())
    }

    /// A constant fp32 vector.
    #[track_caller]
    pub fn floats(self, name: &str, values: &[f32]) -> Value<'g> {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.literal(format!("literal/{name}"), TensorType::new(DType::F32, [values.len()]), bytes)
    }

    /// A constant int64 vector.
    #[track_caller]
    pub fn integers(self, name: &str, values: &[i64]) -> Value<'g> {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.literal(format!("literal/{name}"), TensorType::new(DType::I64, [values.len()]), bytes)
    }

    /// The integers `0 … extent-1` (int64). A symbolic extent is read off an input that has it.
    #[track_caller]
    pub fn range(self, extent: impl Into<Dim>) -> Value<'g> {
        let extent = extent.into();
        let limit = match extent.known() {
            Some(size) => self.integer(size as i64),
            None => self.extent(&extent).squeeze(0),
        };
        let operands = [self.integer(0), limit, self.integer(1)];
        let [range] = self.graph.emit(Emit::onnx("Range", vec![]), &operands, |_| {
            Ok([TensorType { dtype: DType::I64, shape: vec![extent] }])
        });
        range
    }

    /// A size as a value: int64 `[1]`. A symbol is read off an input of the body that has it as an axis.
    #[track_caller]
    pub(crate) fn extent(self, dim: &Dim) -> Value<'g> {
        if let Some(size) = dim.known() {
            return self.integers(&format!("[{size}]"), &[size as i64]);
        }
        let found = {
            let arena = self.graph.arena.borrow();
            let mut body = Some(arena.current);
            std::iter::from_fn(|| {
                let id = body?;
                body = arena.bodies[id].parent;
                Some(id)
            })
            .flat_map(|id| arena.bodies[id].inputs.iter())
            .find_map(|&id| {
                let axis = arena.values[id].tensor.shape.iter().position(|size| size == dim)?;
                Some((id, axis))
            })
        };
        let Some((id, axis)) = found else {
            let problem = format!("no input has an axis of size {dim} to read it from");
            self.graph.arena.borrow_mut().fail(format!("size {dim}"), problem, Location::caller());
            return Value::new(self.graph, POISON);
        };
        let axis = axis as i64;
        Value::new(self.graph, id).apply("Shape", &[], vec![("start", axis.into()), ("end", (axis + 1).into())], |_| {
            Ok(TensorType::new(DType::I64, [1_usize]))
        })
    }

    /// A constant, kept once per body however often it is asked for.
    pub(crate) fn literal(self, name: String, tensor: TensorType, bytes: Vec<u8>) -> Value<'g> {
        let mut arena = self.graph.arena.borrow_mut();
        let body = arena.current;
        let literal = Literal { tensor, bytes };
        if let Some((id, _)) = arena.bodies[body].literals.iter().find(|(_, known)| *known == literal) {
            return Value::new(self.graph, *id);
        }
        let path = std::mem::take(&mut arena.path);
        let name = arena.node_name(&name);
        arena.path = path;
        let id = arena.add_value(name, literal.tensor.clone(), body);
        arena.bodies[body].literals.push((id, literal));
        Value::new(self.graph, id)
    }
}
