//! A sequence that was paused: kept in memory, or saved and gone on from elsewhere.

use crate::Error;
use densessm_session::{Model, Snapshot, States};

/// Where a snapshot's metadata keeps the pending tokens, as a JSON list of ids.
const PENDING: &str = "pending_tokens";

/// A sequence up to here: what the model has consumed, and what it has yet to.
///
/// A generation from both goes on exactly as if it had not been paused, whether in the same process or from a
/// [`Progress::snapshot`].
///
/// Text does not reach over a pause: a character of which some byte tokens come before it and some after becomes
/// replacement characters on either side.
pub struct Progress {
    /// The states after every token but the pending ones.
    pub states: States,
    /// The tokens that the states have not consumed, in order: after a generation that ended, the last token of the
    /// sequence (of the prompt, if no token was made); after one cancelled while it read its prompt, the rest of it.
    pub pending: Vec<u32>,
}

impl Progress {
    /// A second, independent copy on the same runtime: one long prompt read once, gone on from many times.
    ///
    /// # Errors
    /// When the runtime cannot allocate or copy.
    pub fn fork(&self) -> Result<Self, Error> {
        Ok(Self { states: self.states.fork()?, pending: self.pending.clone() })
    }

    /// The states as plain numbers, with the pending tokens in the metadata: ready to be saved.
    ///
    /// # Errors
    /// When the runtime cannot copy the states to the host.
    pub fn snapshot(&self) -> Result<Snapshot, Error> {
        let mut snapshot = self.states.snapshot()?;
        let pending = serde_json::Value::from(self.pending.as_slice()).to_string();
        snapshot.metadata_mut().insert(PENDING.to_owned(), pending);
        Ok(snapshot)
    }

    /// The sequence a snapshot was taken of, on any runtime. A snapshot that names no pending tokens has none, and can
    /// be gone on from with a prompt only.
    ///
    /// # Errors
    /// When the snapshot is another model's, its pending tokens are no ids, or it cannot be placed on the device.
    pub fn restore(model: &mut dyn Model, snapshot: &Snapshot) -> Result<Self, Error> {
        let pending = match snapshot.metadata().get(PENDING) {
            Some(list) => serde_json::from_str(list).map_err(|_| Error::Pending(list.clone()))?,
            None => Vec::new(),
        };
        Ok(Self { states: model.restore(snapshot)?, pending })
    }
}
