//! Declaring weights: at the point of use, with the checkpoint's shape.

use crate::{
    Part, Prepare, Scope, Storage, Value, Weight,
    arena::{MAIN, ValueId},
    error::Line,
};
use std::panic::Location;

impl<'g> Scope<'g> {
    /// Declares a weight that the graph uses as the checkpoint has it; `shape` is its shape there.
    #[track_caller]
    pub fn weight<const N: usize>(self, name: &str, shape: [usize; N]) -> Value<'g> {
        self.weight_as(name, shape, Prepare::AsIs)
    }

    /// Declares a matrix, `[out, in]` in the checkpoint and `[in, out]` in the graph: transposed once, at export.
    #[track_caller]
    pub fn weight_t(self, name: &str, shape: [usize; 2]) -> Value<'g> {
        self.weight_as(name, shape, Prepare::Transpose)
    }

    /// Declares matrices `[outᵢ, in]` of the checkpoint that the graph uses as one `[in, Σ outᵢ]`, transposed once at
    /// export. One product replaces several with the same operand.
    #[track_caller]
    pub fn weights_t(self, matrices: &[(&str, [usize; 2])]) -> Value<'g> {
        let parts: Vec<(&str, &[usize])> = matrices.iter().map(|(name, shape)| (*name, shape.as_slice())).collect();
        self.single(&parts, Prepare::Transpose)
    }

    /// Declares a weight that is prepared at export; `shape` is the checkpoint's.
    #[track_caller]
    pub fn weight_as<const N: usize>(self, name: &str, shape: [usize; N], prepare: Prepare) -> Value<'g> {
        self.single(&[(name, &shape)], prepare)
    }

    /// Declares tensors of the checkpoint, prepared together and stored as `storage` says, which may take several
    /// initializers: `let [values, scales] = p.weight_group(&[("weight", &[64, 32])], Prepare::AsIs, storage)`.
    ///
    /// The number of initializers must be the one that `storage` makes; see [`Storage`].
    #[track_caller]
    pub fn weight_group<const N: usize>(
        self,
        parts: &[(&str, &[usize])],
        prepare: Prepare,
        storage: Storage,
    ) -> [Value<'g>; N] {
        let ids = self.declare(parts, prepare, storage, N, Location::caller());
        std::array::from_fn(|i| ids.get(i).map_or(self.poison(), |&id| Value::new(self.graph(), id)))
    }

    #[track_caller]
    fn single(self, parts: &[(&str, &[usize])], prepare: Prepare) -> Value<'g> {
        let [value] = self.weight_group(parts, prepare, Storage::Float(self.weight_dtype()));
        value
    }

    /// Records a weight; without initializers if anything is wrong with it.
    fn declare(
        self,
        parts: &[(&str, &[usize])],
        prepare: Prepare,
        storage: Storage,
        count: usize,
        at: Line,
    ) -> Vec<ValueId> {
        let mut arena = self.graph().arena.borrow_mut();
        // The first name is the full one, the others are relative to the scope.
        let mut names = parts.iter().map(|(name, _)| (*name).to_owned()).collect::<Vec<_>>();
        if let Some(first) = names.first_mut() {
            *first = arena.checkpoint_name(first);
        }
        let name = names.join("+");
        let parts: Vec<Part> =
            parts.iter().map(|(name, shape)| Part::new(arena.checkpoint_name(name), shape.to_vec())).collect();
        let what = format!("weight `{name}`");
        if arena.root(arena.current) != MAIN {
            arena.fail(what, "declared in an operator's body; pass it in as an operand", at);
            return Vec::new();
        }
        if names.is_empty() || names.iter().any(String::is_empty) {
            arena.fail(what, "expected the name of a tensor", at);
            return Vec::new();
        }
        for part in &parts {
            let what = format!("weight `{}`", part.name);
            if !arena.declare(&what) {
                arena.fail(what, "declared twice", at);
                return Vec::new();
            }
        }
        let weight = match Weight::new(name, parts, prepare, storage, at) {
            Ok(weight) => weight,
            Err(problem) => {
                arena.fail(what, problem, at);
                return Vec::new();
            }
        };
        if weight.initializers.len() != count {
            let problem = format!("is stored as {} initializers, not {count}", weight.initializers.len());
            arena.fail(what, problem, at);
            return Vec::new();
        }
        let ids: Vec<ValueId> = weight
            .initializers
            .iter()
            .map(|initializer| arena.add_value(initializer.name.clone(), initializer.tensor_type(), MAIN, at))
            .collect();
        arena.weights.push((ids.clone(), weight));
        ids
    }
}
