//! The trait every runtime implements, and what passes through it.

use crate::{Bundle, Error, HostTensor, RuntimeInfo, Snapshot, States};
use densessm_proto::GraphKind;
use std::collections::BTreeMap;

/// A bundle loaded on one runtime and device.
///
/// [`Model::prefill`] consumes any number of tokens per row and [`Model::step`] one; both update the states in place and
/// may be mixed freely. A call that fails leaves the states as they were.
///
/// ```no_run
/// use densessm_session::{Bundle, Error, LoadOptions, Runtime, TokenBatch};
///
/// fn next_scores(runtime: &dyn Runtime, bundle: &Bundle) -> Result<Vec<f32>, Error> {
///     let mut model = runtime.load(bundle, &LoadOptions::for_bundle(bundle))?;
///     let mut states = model.initial_states(1)?;
///     let prompt = [17, 4, 61];
///     model.prefill(&TokenBatch::new(&prompt, &[prompt.len()])?, &mut states)?;
///     let logits = model.step(&[8], &mut states)?;
///     Ok(logits.at(0, 0).to_vec())
/// }
/// ```
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
