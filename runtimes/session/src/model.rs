//! The trait every runtime implements, and what passes through it.

use crate::{Bundle, Error, HostTensor, Snapshot, States};
use densessm_proto::GraphKind;
use std::{collections::BTreeMap, fmt};

/// A bundle loaded on one runtime and device.
///
/// Feeding tokens: [`Model::prefill`] takes any number of tokens per row, [`Model::step`] one; both move the states
/// on in place and may be mixed freely. A call that fails leaves the states as they were.
pub trait Model: Send {
    /// The bundle this model was loaded from.
    fn bundle(&self) -> &Bundle;

    /// Which runtime runs it, in which version, on what.
    fn info(&self) -> &RuntimeInfo;

    /// States of `batch` fresh sequences: zeros, and no token consumed. A batch of 0 is one for sequences to join.
    ///
    /// # Errors
    /// When the runtime cannot allocate them.
    fn initial_states(&mut self, batch: usize) -> Result<States, Error>;

    /// States from numbers saved earlier, by this or any other runtime.
    ///
    /// # Errors
    /// When the snapshot belongs to another model ([`Snapshot::check`]) or cannot be placed on the device.
    fn restore(&mut self, snapshot: &Snapshot) -> Result<States, Error>;

    /// Runs the parallel graph over right-padded rows.
    ///
    /// Returns logits `[batch, 1, vocabulary]` of each row's last valid token, or of every token
    /// `[batch, sequence, vocabulary]` when the bundle was exported with `--logits all`.
    ///
    /// # Errors
    /// When the parallel graph is not loaded, the batch differs from the states', or the runtime fails.
    fn prefill(&mut self, tokens: &TokenBatch<'_>, states: &mut States) -> Result<Logits<'_>, Error>;

    /// Runs the recurrent graph: one token for each row. Returns logits `[batch, 1, vocabulary]`.
    ///
    /// # Errors
    /// When the recurrent graph is not loaded, the batch differs from the states', or the runtime fails.
    fn step(&mut self, tokens: &[i64], states: &mut States) -> Result<Logits<'_>, Error>;

    /// Runs one graph on tensors by name and returns its outputs by name. Absent states are zeros, absent counters
    /// zero, absent `sequence_lengths` the full width.
    ///
    /// # Errors
    /// When an input is missing, unknown or misshapen, or the runtime fails.
    fn run(
        &mut self,
        graph: GraphKind,
        inputs: BTreeMap<String, HostTensor>,
    ) -> Result<BTreeMap<String, HostTensor>, Error>;
}

/// How to load a bundle.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// The graphs to load; the bundle must hold them.
    pub graphs: Vec<GraphKind>,
    /// Where to run.
    pub device: Device,
    /// Threads within one operator; the runtime's own choice if absent.
    pub threads: Option<usize>,
}

impl LoadOptions {
    /// Every graph of the bundle, on the CPU.
    pub fn for_bundle(bundle: &Bundle) -> Self {
        let graphs = bundle.manifest().graphs.iter().map(|graph| graph.kind).collect();
        Self { graphs, device: Device::Cpu, threads: None }
    }
}

/// Where a model runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// The processor.
    Cpu,
    /// An NVIDIA card, through CUDA.
    Cuda,
    /// An NVIDIA card, through TensorRT.
    TensorRt,
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
            Self::TensorRt => "tensorrt",
        })
    }
}

/// Which runtime runs a model, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuntimeInfo {
    /// `ort` or `tract`, as `--runtime` takes it.
    pub runtime: &'static str,
    /// Version of the runtime.
    pub version: String,
    /// Where it runs.
    pub device: Device,
}

impl fmt::Display for RuntimeInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = if self.runtime == "ort" { "ONNX Runtime" } else { self.runtime };
        write!(f, "{name} {} on {}", self.version, self.device)
    }
}

/// Whether a runtime can be used here on a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Availability {
    /// It can; the text says version and origin.
    Usable(String),
    /// It cannot; the text says why and what to do.
    Unusable(String),
}

/// Right-padded rows of token ids.
#[derive(Clone, Copy, Debug)]
pub struct TokenBatch<'a> {
    ids: &'a [i64],
    lengths: &'a [usize],
}

impl<'a> TokenBatch<'a> {
    /// Rows of equal width, one after the other in `ids`, of which the first `lengths[row]` tokens are valid.
    ///
    /// # Errors
    /// When there is no row, the rows are not of equal width, or a length is not in 1 … width.
    pub fn new(ids: &'a [i64], lengths: &'a [usize]) -> Result<Self, Error> {
        let rows = lengths.len();
        if rows == 0 || ids.is_empty() || !ids.len().is_multiple_of(rows) {
            return Err(Error::Input {
                name: "tokens".to_owned(),
                problem: format!("expected rows of equal width, got {} tokens in {rows} rows", ids.len()),
            });
        }
        let width = ids.len() / rows;
        if let Some(row) = lengths.iter().position(|&length| length == 0 || length > width) {
            return Err(Error::Input {
                name: "tokens".to_owned(),
                problem: format!("row {row}: expected a length of 1 to {width}, got {}", lengths[row]),
            });
        }
        Ok(Self { ids, lengths })
    }

    /// All tokens, padding included, row after row.
    pub fn ids(&self) -> &'a [i64] {
        self.ids
    }

    /// Valid tokens of each row.
    pub fn lengths(&self) -> &'a [usize] {
        self.lengths
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.lengths.len()
    }

    /// Tokens per row, padding included.
    pub fn width(&self) -> usize {
        self.ids.len() / self.lengths.len()
    }
}

/// Scores of the next token, `[batch, positions, vocabulary]`, borrowed from the runtime until its next call.
#[derive(Clone, Copy, Debug)]
pub struct Logits<'a> {
    /// Number of positions per row.
    pub positions: usize,
    /// Size of the vocabulary.
    pub vocabulary: usize,
    /// The scores, row after row.
    pub values: &'a [f32],
}

impl<'a> Logits<'a> {
    /// The scores at one position of one row.
    ///
    /// # Panics
    /// When row or position is out of range.
    pub fn at(&self, row: usize, position: usize) -> &'a [f32] {
        let start = (row * self.positions + position) * self.vocabulary;
        &self.values[start..start + self.vocabulary]
    }

    /// The scores that follow a row's last valid token, of which the call consumed `length`.
    ///
    /// # Panics
    /// When row or length is out of range.
    pub fn last(&self, row: usize, length: usize) -> &'a [f32] {
        self.at(row, if self.positions == 1 { 0 } else { length - 1 })
    }
}
