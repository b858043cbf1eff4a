//! Weights as they are declared: tensors of the checkpoint, what is done to them once at export, and how they are
//! stored.

use crate::{DType, Error, Initializer, Storage, error::Line, storage::check_size};

/// A weight of the graph: a tensor of the checkpoint, or several matrices of it joined, prepared and stored.
///
/// Two weights are equal when they have equal names, tensors, preparation and storage, wherever they were declared.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Weight {
    /// Its name: the tensor's, or the names of all tensors joined by `+`, of which only the first contains the scope.
    pub name: String,
    /// The checkpoint's tensors, one or several.
    pub parts: Vec<Part>,
    /// What is done to them at export.
    pub prepare: Prepare,
    /// How the result is stored.
    pub storage: Storage,
    /// The tensors in the graph, one or several, in the order in which [`Weight::encode`] makes them.
    pub initializers: Vec<Initializer>,
    /// The shape after preparation.
    pub(crate) prepared: Vec<usize>,
    /// The line that declares it.
    declared: Line,
}

impl PartialEq for Weight {
    fn eq(&self, other: &Self) -> bool {
        (&self.name, &self.parts, self.prepare, self.storage)
            == (&other.name, &other.parts, other.prepare, other.storage)
    }
}

impl Eq for Weight {}

impl Weight {
    pub(crate) fn new(
        name: String,
        parts: Vec<Part>,
        prepare: Prepare,
        storage: Storage,
        declared: Line,
    ) -> Result<Self, String> {
        let prepared = prepare.shape(&parts)?;
        // Preparation computes in fp32.
        check_size(&prepared, DType::F32.size())?;
        let initializers = storage.initializers(&name, &prepared)?;
        Ok(Self { name, parts, prepare, storage, initializers, prepared, declared })
    }

    /// An error about this weight.
    pub(crate) fn error(&self, problem: impl Into<String>) -> Error {
        Error::new(format!("weight `{}`", self.name), problem, self.declared)
    }

    pub(crate) fn declared(&self) -> Line {
        self.declared
    }
}

/// A tensor of the checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Part {
    /// Its name.
    pub name: String,
    /// Its sizes, outermost first.
    pub shape: Vec<usize>,
}

impl Part {
    /// Makes one of its name and sizes.
    pub fn new(name: String, shape: Vec<usize>) -> Self {
        Self { name, shape }
    }

    /// Returns the number of its elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().fold(1, |elements, &size| elements.saturating_mul(size))
    }
}

/// What is done to a checkpoint tensor once, at export.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Prepare {
    /// Nothing. Joined matrices are stacked by rows: `[outᵢ, in] -> [Σ outᵢ, in]`.
    AsIs,
    /// `[out, in] -> [in, out]`, so that `x Wᵀ` is a plain product.
    Transpose,
    /// `-exp(w)`, element by element, computed in f64.
    NegExp,
    /// A depthwise convolution kernel with one row per tap: `[channels, 1, taps] -> [taps, channels]`.
    Taps,
}

impl Prepare {
    /// The shape of some tensors after they have been joined and prepared.
    pub(crate) fn shape(self, parts: &[Part]) -> Result<Vec<usize>, String> {
        let shape = match parts {
            [part] => part.shape.clone(),
            parts => joined_shape(parts)?,
        };
        match (self, shape.as_slice()) {
            (Self::AsIs | Self::NegExp, _) => Ok(shape),
            (Self::Transpose, &[rows, columns]) => Ok(vec![columns, rows]),
            (Self::Taps, &[channels, 1, taps]) => Ok(vec![taps, channels]),
            (Self::Transpose, _) => Err(format!("expected a matrix to transpose, got {shape:?}")),
            (Self::Taps, _) => Err(format!("expected a depthwise kernel [channels, 1, taps], got {shape:?}")),
        }
    }
}

/// The shape of matrices `[outᵢ, in]` stacked by rows.
fn joined_shape(parts: &[Part]) -> Result<Vec<usize>, String> {
    let mut joined: Option<[usize; 2]> = None;
    for part in parts {
        let (rows, width) = match (part.shape.as_slice(), joined) {
            (&[rows, width], None) => (Some(rows), width),
            (&[rows, width], Some([above, expected])) if width == expected => (above.checked_add(rows), width),
            _ => return Err(format!("expected matrices of one width, got {:?} for `{}`", part.shape, part.name)),
        };
        let Some(rows) = rows else { return Err(format!("the matrices down to `{}` have too many rows", part.name)) };
        joined = Some([rows, width]);
    }
    joined.map(Vec::from).ok_or_else(|| "expected at least one tensor".to_owned())
}
