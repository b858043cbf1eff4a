//! Sequences that clients keep by name.

use densessm_generate::SavedSequence;
use std::collections::BTreeMap;

/// What is known of a sequence that is kept by name.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SavedInfo {
    /// Its name.
    pub id: String,
    /// Number of tokens that its states have consumed.
    pub consumed: u64,
    /// Number of tokens that its states have yet to consume.
    pub pending: usize,
}

/// A bounded set of sequences; the least recently used one is dropped first.
pub(crate) struct SavedSequences {
    limit: usize,
    clock: u64,
    prefix: u64,
    kept: BTreeMap<String, (u64, SavedSequence)>,
}

impl SavedSequences {
    /// `prefix` tells the names of this server from those of another one or of an earlier run.
    pub(crate) fn new(limit: usize, prefix: u64) -> Self {
        Self { limit, clock: 0, prefix, kept: BTreeMap::new() }
    }

    /// Keeps a sequence under a new name; none if nothing may be kept.
    pub(crate) fn insert(&mut self, sequence: SavedSequence) -> Option<SavedInfo> {
        if self.limit == 0 {
            return None;
        }
        while self.kept.len() >= self.limit {
            let oldest = self.kept.iter().min_by_key(|(_, (used, _))| *used).map(|(id, _)| id.clone())?;
            self.kept.remove(&oldest);
        }
        self.clock += 1;
        let id = format!("state-{:016x}-{}", self.prefix, self.clock);
        let consumed = sequence.states.lengths().first().map_or(0, |length| length.unsigned_abs());
        let info = SavedInfo { id: id.clone(), consumed, pending: sequence.pending.len() };
        self.kept.insert(id, (self.clock, sequence));
        Some(info)
    }

    pub(crate) fn get(&mut self, id: &str) -> Option<&SavedSequence> {
        self.clock += 1;
        let (used, sequence) = self.kept.get_mut(id)?;
        *used = self.clock;
        Some(sequence)
    }

    pub(crate) fn remove(&mut self, id: &str) -> bool {
        self.kept.remove(id).is_some()
    }
}
