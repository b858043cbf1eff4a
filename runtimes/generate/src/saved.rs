//! A paused sequence, kept in memory or saved to be continued elsewhere.

use crate::{Continuation, Error};
use densessm_session::{Model, Snapshot, States};

/// Where a snapshot's metadata keeps the pending tokens, as a JSON list of ids.
const PENDING: &str = "pending_tokens";

/// A paused sequence: what the model has consumed, and what it has yet to consume.
///
/// A generation that [resumes](crate::resume) it continues exactly as if there had been no pause, whether in the same
/// process or from a [`SavedSequence::snapshot`].
///
/// Text does not reach over a pause: a character of which some byte tokens come before it and some after becomes
/// replacement characters on both sides.
pub struct SavedSequence {
    /// The states after every token but the pending ones, of one sequence.
    pub states: States,
    /// The tokens that the states have not consumed, in order: after a generation that ended, the last token of the
    /// sequence (of the prompt, if none was generated); after one that was cancelled while it read its prompt, the rest
    /// of the prompt.
    pub pending: Vec<u32>,
}

impl SavedSequence {
    /// Returns an independent copy on the same runtime: one long prompt is read once and continued many times.
    ///
    /// # Errors
    /// When the runtime cannot allocate or copy.
    pub fn fork(&self) -> Result<Self, Error> {
        Ok(Self { states: self.states.fork()?, pending: self.pending.clone() })
    }

    /// Returns what a [`Sequence`](crate::Sequence) needs to know of this one.
    ///
    /// # Errors
    /// When the states are not those of one sequence.
    pub fn continuation(&self) -> Result<Continuation, Error> {
        match *self.states.lengths() {
            [consumed] => Ok(Continuation::new(consumed.unsigned_abs(), self.pending.clone())),
            ref lengths => Err(Error::Batch(lengths.len())),
        }
    }

    /// Copies the states to the host, with the pending tokens in the metadata, ready to be saved.
    ///
    /// # Errors
    /// When the runtime cannot copy the states.
    pub fn snapshot(&self) -> Result<Snapshot, Error> {
        let mut snapshot = self.states.snapshot()?;
        let pending = serde_json::Value::from(self.pending.as_slice()).to_string();
        snapshot.metadata_mut().insert(PENDING.to_owned(), pending);
        Ok(snapshot)
    }

    /// Restores the sequence that a snapshot was taken of, on any runtime. A snapshot that names no pending tokens has
    /// none, and can be continued with a prompt only.
    ///
    /// # Errors
    /// When the snapshot is another model's, its pending tokens are no ids, or it cannot be copied to the device.
    pub fn restore(model: &mut dyn Model, snapshot: &Snapshot) -> Result<Self, Error> {
        let pending = match snapshot.metadata().get(PENDING) {
            Some(list) => serde_json::from_str(list).map_err(|_| Error::Pending(list.clone()))?,
            None => Vec::new(),
        };
        Ok(Self { states: model.restore(snapshot)?, pending })
    }
}
