//! The limits of a scheduler and of its cache.

use crate::Error;
use std::path::PathBuf;

/// How many sequences run at once, and what a request may ask for.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SchedulerOptions {
    /// Maximum number of sequences that run at once: the rows of the batch. Each takes the memory of one state.
    pub slots: usize,
    /// Maximum number of prompt tokens that are read between two steps of the batch. Smaller pieces delay running
    /// sequences less, larger ones read a prompt faster.
    pub piece: usize,
    /// Maximum number of requests that wait for a slot.
    pub queue: usize,
    /// Maximum number of tokens of a prompt.
    pub max_prompt_tokens: usize,
    /// Maximum number of tokens that a request may ask to be generated.
    pub max_new_tokens: usize,
    /// Maximum number of sequences that clients keep by name; the least recently used one is dropped first.
    pub max_saved: usize,
    /// The cache of prompt states.
    pub cache: CacheOptions,
}

impl Default for SchedulerOptions {
    /// 16 slots, pieces of 64 tokens, 256 waiting requests, prompts of 32768 tokens, 4096 new tokens, 32 saved
    /// sequences.
    fn default() -> Self {
        Self {
            slots: 16,
            piece: 64,
            queue: 256,
            max_prompt_tokens: 32_768,
            max_new_tokens: 4096,
            max_saved: 32,
            cache: CacheOptions::default(),
        }
    }
}

impl SchedulerOptions {
    /// Sets the maximum number of sequences that run at once.
    #[must_use]
    pub fn with_slots(self, slots: usize) -> Self {
        Self { slots, ..self }
    }

    /// Sets the maximum number of prompt tokens that are read between two steps.
    #[must_use]
    pub fn with_piece(self, piece: usize) -> Self {
        Self { piece, ..self }
    }

    /// Sets the maximum number of waiting requests.
    #[must_use]
    pub fn with_queue(self, queue: usize) -> Self {
        Self { queue, ..self }
    }

    /// Sets the maximum number of tokens of a prompt and of those to generate.
    #[must_use]
    pub fn with_limits(self, max_prompt_tokens: usize, max_new_tokens: usize) -> Self {
        Self { max_prompt_tokens, max_new_tokens, ..self }
    }

    /// Sets the maximum number of sequences that clients keep by name.
    #[must_use]
    pub fn with_max_saved(self, max_saved: usize) -> Self {
        Self { max_saved, ..self }
    }

    /// Sets the options of the cache.
    #[must_use]
    pub fn with_cache(self, cache: CacheOptions) -> Self {
        Self { cache, ..self }
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        for (name, value) in [("slots", self.slots), ("piece", self.piece), ("queue", self.queue)] {
            if value == 0 {
                return Err(Error::Option { name, problem: "expected 1 or more, got 0".to_owned() });
            }
        }
        Ok(())
    }
}

/// How much the cache of prompt states may keep, and where.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CacheOptions {
    /// Maximum number of bytes of states in the memory of the runtime, token prefixes included; 0 keeps none.
    pub bytes: u64,
    /// The folder in which states are kept as well, so that they survive a restart; none by default.
    pub folder: Option<PathBuf>,
    /// Maximum number of bytes of the files in the folder.
    pub folder_bytes: u64,
    /// A state is kept where a prompt leaves the path of an earlier one, if this many tokens at least lie between that
    /// point and the last cached state before it.
    pub branch_tokens: usize,
}

impl Default for CacheOptions {
    /// 1 GiB in memory, no folder (10 GiB if one is set), states at branches after 32 tokens.
    fn default() -> Self {
        Self { bytes: 1 << 30, folder: None, folder_bytes: 10 << 30, branch_tokens: 32 }
    }
}

impl CacheOptions {
    /// Returns options that keep no states.
    pub fn disabled() -> Self {
        Self { bytes: 0, ..Self::default() }
    }

    /// Sets the maximum number of bytes in memory; 0 keeps none.
    #[must_use]
    pub fn with_bytes(self, bytes: u64) -> Self {
        Self { bytes, ..self }
    }

    /// Sets the folder and the maximum number of bytes of its files.
    #[must_use]
    pub fn with_folder(self, folder: impl Into<PathBuf>, folder_bytes: u64) -> Self {
        Self { folder: Some(folder.into()), folder_bytes, ..self }
    }

    /// Sets how many tokens at least a state at a branch must save.
    #[must_use]
    pub fn with_branch_tokens(self, branch_tokens: usize) -> Self {
        Self { branch_tokens, ..self }
    }
}
