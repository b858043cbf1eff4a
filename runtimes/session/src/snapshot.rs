//! States as plain numbers on the host: to be saved, loaded and moved between runtimes.

use crate::{Bundle, Error, HostTensor, Values};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::Path,
};

/// The tensor of a saved snapshot that counts the tokens each sequence has consumed.
const LENGTHS: &str = "lengths";
/// The metadata that identifies a safetensors file as a snapshot, and its model.
const FORMAT: &str = "densessm.states";
const FORMAT_VERSION: &str = "1";
const FINGERPRINT: &str = "densessm.model";
/// The longest sequence that is accepted: longer than any real one, and far from where counting would overflow.
const LONGEST: i64 = i64::MAX / 2;
/// The prefix of the caller's own metadata.
const CALLER: &str = "caller.";

/// The states of a batch of sequences as plain numbers on the host, by input name, each `[batch, ..]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    fingerprint: String,
    lengths: Vec<i64>,
    tensors: BTreeMap<String, HostTensor>,
    metadata: BTreeMap<String, String>,
}

impl Snapshot {
    /// Makes a snapshot for the model with that fingerprint.
    pub fn new(fingerprint: String, lengths: Vec<i64>, tensors: BTreeMap<String, HostTensor>) -> Self {
        Self { fingerprint, lengths, tensors, metadata: BTreeMap::new() }
    }

    /// Returns the number of sequences.
    pub fn batch(&self) -> usize {
        self.lengths.len()
    }

    /// Returns the number of tokens that each sequence has consumed.
    pub fn lengths(&self) -> &[i64] {
        &self.lengths
    }

    /// Returns the states, by input name.
    pub fn tensors(&self) -> &BTreeMap<String, HostTensor> {
        &self.tensors
    }

    /// Returns the metadata that callers keep with the states.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Returns the metadata that callers keep with the states, to be changed.
    pub fn metadata_mut(&mut self) -> &mut BTreeMap<String, String> {
        &mut self.metadata
    }

    /// Checks that these are states of a bundle's model.
    ///
    /// # Errors
    /// When they belong to another model, or a tensor is missing, unknown, of the wrong shape or not finite.
    pub fn check(&self, bundle: &Bundle) -> Result<(), Error> {
        let wrong = |name: &str, problem: String| Err(Error::Input { name: name.to_owned(), problem });
        let expected = bundle.fingerprint();
        if self.fingerprint != expected {
            let (expected, got) = (short(&expected), short(&self.fingerprint));
            return wrong("states", format!("expected those of model {expected}, got those of model {got}"));
        }
        if self.lengths.is_empty() || self.lengths.iter().any(|length| !(0..=LONGEST).contains(length)) {
            return wrong(LENGTHS, format!("expected a count for each sequence, got {:?}", self.lengths));
        }
        let layout = bundle.states();
        for state in &layout {
            let Some(tensor) = self.tensors.get(&state.past) else {
                return wrong(&state.past, "missing".to_owned());
            };
            let shape: Vec<usize> = std::iter::once(self.batch()).chain(state.shape.iter().copied()).collect();
            match &tensor.values {
                Values::Float32(values) if tensor.shape == shape && values.len() == shape.iter().product::<usize>() => {
                    if let Some(at) = values.iter().position(|value| !value.is_finite()) {
                        return wrong(&state.past, format!("expected finite numbers, got {} at {at}", values[at]));
                    }
                }
                _ => {
                    let got = format!("{} {:?}", tensor.dtype(), tensor.shape);
                    return wrong(&state.past, format!("expected fp32 {shape:?}, got {got}"));
                }
            }
        }
        match self.tensors.keys().find(|name| layout.iter().all(|state| state.past != **name)) {
            Some(name) => wrong(name, "expected the model's states only".to_owned()),
            None => Ok(()),
        }
    }

    /// Returns some of the sequences, in the order given. A row may be given more than once. The metadata of callers is
    /// not copied. To take rows of running sequences, use [`States::select`](crate::States::select), which does not
    /// copy to the host.
    ///
    /// # Errors
    /// When there is no such row.
    pub fn select(&self, rows: &[usize]) -> Result<Self, Error> {
        if let Some(row) = rows.iter().find(|&&row| row >= self.batch()) {
            let problem = format!("expected a row below {}, got {row}", self.batch());
            return Err(Error::Input { name: "rows".to_owned(), problem });
        }
        let pick = |tensor: &HostTensor| {
            let Values::Float32(values) = &tensor.values else { return tensor.clone() };
            let row = values.len() / self.batch().max(1);
            let picked = rows.iter().flat_map(|&r| &values[r * row..(r + 1) * row]).copied().collect();
            let mut shape = tensor.shape.clone();
            if let Some(batch) = shape.first_mut() {
                *batch = rows.len();
            }
            HostTensor { shape, values: Values::Float32(picked) }
        };
        Ok(Self {
            fingerprint: self.fingerprint.clone(),
            lengths: rows.iter().map(|&row| self.lengths[row]).collect(),
            tensors: self.tensors.iter().map(|(name, tensor)| (name.clone(), pick(tensor))).collect(),
            metadata: BTreeMap::new(),
        })
    }

    /// Returns the sequences of several snapshots as one batch, in order. The metadata of callers is not copied.
    ///
    /// # Errors
    /// When there is no snapshot, or they are not of one model.
    pub fn concat(parts: &[Self]) -> Result<Self, Error> {
        let wrong = |problem: &str| Error::Input { name: "states".to_owned(), problem: problem.to_owned() };
        let [first, rest @ ..] = parts else { return Err(wrong("expected at least one snapshot")) };
        let mut joined = Self { metadata: BTreeMap::new(), ..first.clone() };
        for part in rest {
            if part.fingerprint != joined.fingerprint || !part.tensors.keys().eq(joined.tensors.keys()) {
                return Err(wrong("expected snapshots of one model"));
            }
            joined.lengths.extend(&part.lengths);
            for (tensor, more) in joined.tensors.values_mut().zip(part.tensors.values()) {
                let fits = !tensor.shape.is_empty() && tensor.shape.get(1..) == more.shape.get(1..);
                match (&mut tensor.values, &more.values) {
                    (Values::Float32(values), Values::Float32(more_values)) if fits => values.extend(more_values),
                    _ => return Err(wrong("expected snapshots of one model")),
                }
                tensor.shape[0] += more.shape[0];
            }
        }
        Ok(joined)
    }

    /// Writes the snapshot as a safetensors file: to a temporary file first, which then replaces the target.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), Error> {
        let io = |error: std::io::Error| Error::Io { path: path.to_owned(), error };
        let broken = |error: safetensors::SafeTensorError| io(std::io::Error::other(error));
        let lengths = HostTensor { shape: vec![self.batch()], values: Values::Int64(self.lengths.clone()) };
        let tensors = self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).chain([(LENGTHS, &lengths)]);
        let bytes: Vec<(&str, &HostTensor, Vec<u8>)> =
            tensors.map(|(name, tensor)| (name, tensor, tensor.values.to_le_bytes())).collect();
        let views = bytes
            .iter()
            .map(|(name, tensor, bytes)| {
                Ok((*name, TensorView::new(tensor.values.safetensors(), tensor.shape.clone(), bytes)?))
            })
            .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()
            .map_err(broken)?;
        let caller = self.metadata.iter().map(|(key, value)| (format!("{CALLER}{key}"), value.clone()));
        let metadata: HashMap<String, String> = caller
            .chain([(FORMAT.to_owned(), FORMAT_VERSION.to_owned()), (FINGERPRINT.to_owned(), self.fingerprint.clone())])
            .collect();
        let serialized = safetensors::serialize(views, Some(metadata)).map_err(broken)?;
        crate::write_atomically(path, &serialized).map_err(io)
    }

    /// Reads a saved snapshot. [`Snapshot::check`] says whether it fits a model.
    ///
    /// # Errors
    /// When the file cannot be read or is not a saved snapshot.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let problem = |problem: String| Error::Bundle { path: path.to_owned(), problem };
        let bytes = fs::read(path).map_err(|error| Error::Io { path: path.to_owned(), error })?;
        let broken = |error: safetensors::SafeTensorError| problem(format!("not a saved state: {error}"));
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(broken)?;
        let tags = header.metadata().clone().unwrap_or_default();
        if tags.get(FORMAT).map(String::as_str) != Some(FORMAT_VERSION) {
            return Err(problem(format!("not a saved state: expected {FORMAT} {FORMAT_VERSION} in its metadata")));
        }
        let mut tensors = BTreeMap::new();
        for (name, view) in SafeTensors::deserialize(&bytes).map_err(broken)?.iter() {
            let values = Values::from_le_bytes(view.dtype(), view.data())
                .ok_or_else(|| problem(format!("{name}: expected F32 or I64, got {:?}", view.dtype())))?;
            tensors.insert(name.to_owned(), HostTensor { shape: view.shape().to_vec(), values });
        }
        let lengths = match tensors.remove(LENGTHS) {
            Some(HostTensor { values: Values::Int64(lengths), shape }) if shape.len() == 1 => lengths,
            _ => return Err(problem(format!("{LENGTHS}: expected a vector of I64"))),
        };
        let of_each = |tensor: &HostTensor| tensor.shape.first() == Some(&lengths.len());
        if let Some((name, tensor)) = tensors.iter().find(|(_, tensor)| !of_each(tensor)) {
            let expected = format!("{name}: expected a state of each of {} sequences", lengths.len());
            return Err(problem(format!("{expected}, got shape {:?}", tensor.shape)));
        }
        let metadata = tags
            .iter()
            .filter_map(|(key, value)| Some((key.strip_prefix(CALLER)?.to_owned(), value.clone())))
            .collect();
        let fingerprint = tags.get(FINGERPRINT).cloned().unwrap_or_default();
        Ok(Self { fingerprint, lengths, tensors, metadata })
    }
}

impl Values {
    /// Returns the elements as a safetensors file holds them.
    pub fn to_le_bytes(&self) -> Vec<u8> {
        match self {
            Self::Float32(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            Self::Int64(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            Self::Int32(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        }
    }

    /// Reads elements of a safetensors file; none if they are of a type that is not one of the three.
    pub fn from_le_bytes(dtype: Dtype, bytes: &[u8]) -> Option<Self> {
        match dtype {
            Dtype::F32 => Some(Self::Float32(numbers(bytes, f32::from_le_bytes))),
            Dtype::I64 => Some(Self::Int64(numbers(bytes, i64::from_le_bytes))),
            Dtype::I32 => Some(Self::Int32(numbers(bytes, i32::from_le_bytes))),
            _ => None,
        }
    }

    /// Returns the element type's name in a safetensors file.
    pub fn safetensors(&self) -> Dtype {
        match self {
            Self::Float32(_) => Dtype::F32,
            Self::Int64(_) => Dtype::I64,
            Self::Int32(_) => Dtype::I32,
        }
    }
}

fn numbers<T, const N: usize>(bytes: &[u8], number: fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks().0.iter().map(|&chunk| number(chunk)).collect()
}

/// The first digits of a fingerprint, enough to distinguish two.
fn short(fingerprint: &str) -> &str {
    if fingerprint.is_empty() { "unknown" } else { fingerprint.get(..12).unwrap_or(fingerprint) }
}
