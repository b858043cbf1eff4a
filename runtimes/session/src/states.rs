//! The states of running sequences, one row each, kept where their runtime put them.
//!
//! Rows are added, removed and copied in the runtime's own memory (a GPU's, if the model runs there). Only a
//! [`Snapshot`] holds the numbers on the host.

use crate::{Bundle, Error, HostTensor, Snapshot};
use std::{any::Any, collections::BTreeMap};

/// The reason why rows of states cannot be used as asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StatesError {
    /// The states belong to a model with other weights.
    #[error("states: made by a model of another bundle")]
    OtherModel,
    /// The states are kept by another runtime.
    #[error("states: made by another runtime; pass them on as a snapshot")]
    OtherRuntime,
    /// The states are in the memory of another device.
    #[error("states: expected those on {expected}, got those on {got}; pass them on as a snapshot")]
    OtherDevice {
        /// The device of the states that were to receive rows.
        expected: String,
        /// The device of the rows.
        got: String,
    },
    /// There is no row with this number.
    #[error("states: expected a row below {batch}, got {row}")]
    Row {
        /// The row that was given.
        row: usize,
        /// The number of rows.
        batch: usize,
    },
    /// There are no rows, and at least one is needed.
    #[error("states: expected at least 1 sequence, got none")]
    Empty,
}

/// The tensors in which one runtime keeps the states of a batch; each runtime implements this for its own memory.
///
/// Callers have checked row numbers and that both stores belong to models with the same weights. A call that fails
/// leaves the rows as they were.
pub trait StateStore: Any + Send {
    /// Returns an independent copy of all rows.
    ///
    /// # Errors
    /// When the runtime cannot allocate or copy.
    fn fork(&self) -> Result<Box<dyn StateStore>, Error>;

    /// Returns independent copies of some rows, in the order given; a row may be given more than once.
    ///
    /// # Errors
    /// When the runtime cannot allocate or copy.
    fn select(&self, rows: &[usize]) -> Result<Box<dyn StateStore>, Error>;

    /// Appends copies of some rows of another store, in the order given.
    ///
    /// # Errors
    /// When the other store is another runtime's or on another device, or the runtime cannot allocate or copy.
    fn join(&mut self, other: &dyn StateStore, rows: &[usize]) -> Result<(), Error>;

    /// Removes a row. The last row takes its place.
    ///
    /// # Errors
    /// When the runtime cannot copy.
    fn swap_remove(&mut self, row: usize) -> Result<(), Error>;

    /// Allocates memory for this many rows in addition to the present ones, where the runtime works on its states in
    /// place.
    ///
    /// # Errors
    /// When the runtime cannot allocate.
    fn reserve(&mut self, additional: usize) -> Result<(), Error>;

    /// Copies the numbers to the host: by input name, without the position counters.
    ///
    /// # Errors
    /// When the runtime cannot copy.
    fn tensors(&self) -> Result<BTreeMap<String, HostTensor>, Error>;
}

impl dyn StateStore {
    /// Returns the store as the type that a runtime made it of.
    ///
    /// # Errors
    /// [`StatesError::OtherRuntime`] when it is of another type.
    pub fn downcast_ref<T: StateStore>(&self) -> Result<&T, StatesError> {
        let any: &dyn Any = self;
        any.downcast_ref().ok_or(StatesError::OtherRuntime)
    }
}

/// The states of a batch of sequences, one row each. Their size does not depend on how many tokens were consumed.
///
/// Sequences join and leave a batch between any two calls of the model. No number passes through host memory unless
/// the runtime keeps its states there, and unless a [snapshot](States::snapshot) is taken.
///
/// ```no_run
/// # use densessm_session::{Error, Model, TokenBatch};
/// # fn example(model: &mut dyn Model, prompts: &[Vec<i64>]) -> Result<(), Error> {
/// // A batch without sequences, with memory for as many as are served at once.
/// let mut batch = model.initial_states(0)?;
/// batch.reserve(prompts.len())?;
/// for prompt in prompts {
///     let mut states = model.initial_states(1)?;
///     model.prefill(&TokenBatch::new(prompt, &[prompt.len()])?, &mut states)?;
///     batch.join(&states)?;
/// }
/// model.step(&vec![0; prompts.len()], &mut batch)?;
/// // The first sequence has ended. The last one is row 0 from now on.
/// batch.swap_remove(0)?;
/// # Ok(())
/// # }
/// ```
pub struct States {
    store: Box<dyn StateStore>,
    lengths: Vec<i64>,
    fingerprint: String,
}

impl States {
    /// Wraps a runtime's store. `lengths` are the tokens that each of its sequences has consumed.
    pub fn new(bundle: &Bundle, store: Box<dyn StateStore>, lengths: Vec<i64>) -> Self {
        Self { store, lengths, fingerprint: bundle.fingerprint() }
    }

    /// Returns the number of sequences.
    pub fn batch(&self) -> usize {
        self.lengths.len()
    }

    /// Returns the number of tokens that each sequence has consumed.
    pub fn lengths(&self) -> &[i64] {
        &self.lengths
    }

    /// Counts tokens that a runtime has just consumed, one number per row.
    pub fn advance(&mut self, tokens: impl IntoIterator<Item = usize>) {
        for (length, tokens) in self.lengths.iter_mut().zip(tokens) {
            *length += tokens as i64;
        }
    }

    /// Returns the store as the type that a runtime made it of, for a model of that bundle.
    ///
    /// # Errors
    /// When another runtime made these states, or they are those of another model.
    pub fn store<T: StateStore>(&mut self, bundle: &Bundle) -> Result<&mut T, Error> {
        if self.fingerprint != bundle.weights_digest() {
            return Err(StatesError::OtherModel.into());
        }
        let any: &mut dyn Any = &mut *self.store;
        any.downcast_mut().ok_or_else(|| StatesError::OtherRuntime.into())
    }

    /// Returns an independent copy on the same runtime and device.
    ///
    /// # Errors
    /// When the runtime cannot allocate or copy.
    pub fn fork(&self) -> Result<Self, Error> {
        Ok(self.with_store(self.store.fork()?, self.lengths.clone()))
    }

    /// Returns independent copies of some rows, in the order given, on the same runtime and device. A row may be given
    /// more than once.
    ///
    /// # Errors
    /// When no row is given or one does not exist, or the runtime cannot allocate or copy.
    pub fn select(&self, rows: &[usize]) -> Result<Self, Error> {
        if rows.is_empty() {
            return Err(StatesError::Empty.into());
        }
        let lengths = rows.iter().map(|&row| self.length(row)).collect::<Result<_, _>>()?;
        Ok(self.with_store(self.store.select(rows)?, lengths))
    }

    /// Appends copies of all rows of other states, which stay as they are.
    ///
    /// # Errors
    /// When the others are those of another model, runtime or device, or the runtime cannot allocate or copy. The rows
    /// are then as they were.
    pub fn join(&mut self, other: &Self) -> Result<(), Error> {
        let rows: Vec<usize> = (0..other.batch()).collect();
        self.join_rows(other, &rows)
    }

    /// Appends copies of some rows of other states, in the order given. A row may be given more than once.
    ///
    /// # Errors
    /// When a row does not exist, otherwise as [`States::join`].
    pub fn join_rows(&mut self, other: &Self, rows: &[usize]) -> Result<(), Error> {
        if self.fingerprint != other.fingerprint {
            return Err(StatesError::OtherModel.into());
        }
        let lengths = rows.iter().map(|&row| other.length(row)).collect::<Result<Vec<_>, _>>()?;
        self.store.join(&*other.store, rows)?;
        self.lengths.extend(lengths);
        Ok(())
    }

    /// Removes a row. The last row takes its place, so that all others keep their numbers; at most one row is copied.
    ///
    /// # Errors
    /// When the row does not exist, or the runtime cannot copy. The rows are then as they were.
    pub fn swap_remove(&mut self, row: usize) -> Result<(), Error> {
        self.length(row)?;
        self.store.swap_remove(row)?;
        self.lengths.swap_remove(row);
        Ok(())
    }

    /// Allocates memory for this many sequences in addition to the present ones, so that joining them allocates none.
    /// It has no effect on a runtime that allocates its states anew in every call.
    ///
    /// # Errors
    /// When the runtime cannot allocate.
    pub fn reserve(&mut self, additional: usize) -> Result<(), Error> {
        self.store.reserve(additional)
    }

    /// Copies the states to the host.
    ///
    /// # Errors
    /// When there are no sequences, or the runtime cannot copy.
    pub fn snapshot(&self) -> Result<Snapshot, Error> {
        if self.lengths.is_empty() {
            return Err(StatesError::Empty.into());
        }
        Ok(Snapshot::new(self.fingerprint.clone(), self.lengths.clone(), self.store.tensors()?))
    }

    fn length(&self, row: usize) -> Result<i64, StatesError> {
        self.lengths.get(row).copied().ok_or(StatesError::Row { row, batch: self.batch() })
    }

    fn with_store(&self, store: Box<dyn StateStore>, lengths: Vec<i64>) -> Self {
        Self { store, lengths, fingerprint: self.fingerprint.clone() }
    }
}

/// States move between threads with the sequences they belong to.
const _: () = {
    const fn is_send<T: Send>() {}
    is_send::<States>();
};
