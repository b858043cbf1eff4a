//! States after prefixes of prompts, in the memory of the runtime and, if asked for, on disk.
//!
//! A state is kept at the end of a prompt, where prompts branch and at the end of a turn: constant in size, it stands
//! for any number of tokens. Memory and folder have a bound each; the least recently used state goes first. A state
//! that leaves the memory is still found in the folder, and returns to memory when it is used.

mod folder;
mod tree;

use crate::{CacheOptions, Error, Log, Metrics};
use densessm_session::{Bundle, Model, States};
use folder::{Folder, StoredFile, Written};
use std::{collections::BTreeMap, sync::Arc};
use tree::{Place, Tree};

/// What the cache knows of a prompt.
pub(crate) struct Found {
    /// A copy of the state after the longest prefix that is kept.
    pub(crate) states: Option<States>,
    /// The length of that prefix.
    pub(crate) consumed: usize,
    /// Where the prompt leaves the path of an earlier one, if a state there is worth keeping.
    pub(crate) branch: Option<usize>,
}

#[derive(Default)]
struct Entry {
    memory: Option<Used<States>>,
    file: Option<Used<StoredFile>>,
}

/// What was used last at a time of the cache's own clock, which names it among those of its kind.
struct Used<T> {
    time: u64,
    item: T,
}

pub(crate) struct Cache {
    tree: Tree<Entry>,
    clock: u64,
    /// Bytes of one state.
    state_bytes: u64,
    limit: u64,
    branch_tokens: usize,
    /// The entries with a state in memory, and with a file, the least recently used first.
    in_memory: BTreeMap<u64, Place>,
    on_disk: BTreeMap<u64, Place>,
    folder: Option<Folder>,
    folder_bytes: u64,
    folder_limit: u64,
    metrics: Arc<Metrics>,
    log: Log,
}

impl Cache {
    /// Opens the cache of a bundle, with what the folder holds from earlier.
    pub(crate) fn open(
        bundle: &Bundle,
        options: &CacheOptions,
        metrics: Arc<Metrics>,
        log: Log,
    ) -> Result<Self, Error> {
        let mut cache = Self {
            tree: Tree::new(),
            clock: 0,
            state_bytes: bundle.manifest().state_bytes_per_sequence,
            limit: options.bytes,
            branch_tokens: options.branch_tokens.max(1),
            in_memory: BTreeMap::new(),
            on_disk: BTreeMap::new(),
            folder: None,
            folder_bytes: 0,
            folder_limit: options.folder_bytes,
            metrics,
            log,
        };
        if let Some(path) = &options.folder {
            let (folder, stored) = Folder::open(path, bundle, &cache.log, &cache.metrics)?;
            cache.folder = Some(folder);
            for Written { tokens, file } in stored {
                cache.add_file(&tokens, file);
            }
            cache.shrink();
        }
        Ok(cache)
    }

    fn is_disabled(&self) -> bool {
        self.limit == 0 && self.folder.is_none()
    }

    /// Returns a copy of the state after the longest prefix that is kept.
    pub(crate) fn find(&mut self, model: &mut dyn Model, tokens: &[u32]) -> Found {
        if self.is_disabled() || tokens.is_empty() {
            return Found { states: None, consumed: 0, branch: None };
        }
        self.collect_written();
        let (along, shared) = self.tree.along(tokens);
        let mut found = (None, 0);
        for (consumed, place) in along {
            if let Some(states) = self.copy(model, place, &tokens[..consumed]) {
                found = (Some(states), consumed);
                break;
            }
        }
        self.shrink();
        let (states, consumed) = found;
        let counter = if states.is_some() { &self.metrics.cache_hits } else { &self.metrics.cache_misses };
        counter.add(1);
        let worthwhile = shared < tokens.len() && shared >= consumed + self.branch_tokens;
        Found { states, consumed, branch: worthwhile.then_some(shared) }
    }

    /// Keeps the state after a prefix, unless it is kept already. `states` makes the copy, when it is needed.
    pub(crate) fn insert(&mut self, tokens: &[u32], states: impl FnOnce() -> Result<States, densessm_session::Error>) {
        if self.is_disabled() || tokens.is_empty() {
            return;
        }
        self.collect_written();
        let place = match self.tree.find(tokens) {
            Some(place) => place,
            None => self.tree.insert(tokens, Entry::default()),
        };
        self.touch(place);
        if self.tree.get_mut(place).is_some_and(|entry| entry.memory.is_some() || entry.file.is_some()) {
            return;
        }
        match states() {
            Ok(states) => {
                if let Some(folder) = &mut self.folder {
                    folder.write(tokens, &states, &self.log);
                }
                self.set_memory(place, states);
            }
            Err(error) => self.log.line("cache", &[("error", &error)]),
        }
        self.prune(place);
        self.shrink();
    }

    /// Copies the state of an entry: that in memory, or that of its file, which moves to memory.
    fn copy(&mut self, model: &mut dyn Model, place: Place, tokens: &[u32]) -> Option<States> {
        self.touch(place);
        let entry = self.tree.get_mut(place)?;
        if let Some(kept) = &entry.memory {
            return match kept.item.fork() {
                Ok(states) => Some(states),
                Err(error) => {
                    self.log.line("cache", &[("error", &error)]);
                    None
                }
            };
        }
        let file = &entry.file.as_ref()?.item;
        match file.load(model, tokens) {
            Ok(states) => {
                if let Ok(copy) = states.fork() {
                    self.set_memory(place, copy);
                }
                Some(states)
            }
            Err(problem) => {
                self.metrics.cache_damaged.add(1);
                self.log.line("cache", &[("dropped", &file.path().display()), ("error", &problem)]);
                self.drop_file(place);
                self.prune(place);
                None
            }
        }
    }

    fn set_memory(&mut self, place: Place, states: States) {
        if self.state_bytes > self.limit {
            return;
        }
        self.clock += 1;
        if let Some(entry) = self.tree.get_mut(place) {
            entry.memory = Some(Used { time: self.clock, item: states });
            self.in_memory.insert(self.clock, place);
        }
    }

    fn add_file(&mut self, tokens: &[u32], file: StoredFile) {
        let place = match self.tree.find(tokens) {
            Some(place) => place,
            None => self.tree.insert(tokens, Entry::default()),
        };
        self.clock += 1;
        if let Some(entry) = self.tree.get_mut(place) {
            self.folder_bytes += file.bytes();
            if let Some(before) = entry.file.replace(Used { time: self.clock, item: file }) {
                self.folder_bytes -= before.item.bytes();
                self.on_disk.remove(&before.time);
            }
            self.on_disk.insert(self.clock, place);
        }
    }

    /// Notes that an entry is used.
    fn touch(&mut self, place: Place) {
        self.clock += 1;
        let Some(entry) = self.tree.get_mut(place) else { return };
        if let Some(kept) = &mut entry.memory {
            self.in_memory.remove(&kept.time);
            kept.time = self.clock;
            self.in_memory.insert(self.clock, place);
        }
        if let Some(kept) = &mut entry.file {
            self.on_disk.remove(&kept.time);
            kept.time = self.clock;
            self.on_disk.insert(self.clock, place);
            kept.item.touch();
        }
    }

    /// Bytes in memory: the states, and the tokens of the tree.
    fn memory_bytes(&self) -> u64 {
        self.in_memory.len() as u64 * self.state_bytes + (self.tree.tokens() * size_of::<u32>()) as u64
    }

    /// Removes the least recently used states until memory and folder are within their bounds.
    fn shrink(&mut self) {
        while self.folder_bytes > self.folder_limit
            && let Some((_, &place)) = self.on_disk.first_key_value()
        {
            self.drop_file(place);
            self.prune(place);
        }
        while self.memory_bytes() > self.limit
            && let Some((_, place)) = self.in_memory.pop_first()
        {
            if let Some(entry) = self.tree.get_mut(place) {
                entry.memory = None;
            }
            self.metrics.cache_evictions.add(1);
            self.prune(place);
        }
        self.metrics.cache_bytes.set(self.memory_bytes());
        self.metrics.cache_folder_bytes.set(self.folder_bytes);
        self.metrics.cache_states.set(self.in_memory.len() as u64);
        self.metrics.cache_files.set(self.on_disk.len() as u64);
    }

    fn drop_file(&mut self, place: Place) {
        let Some(kept) = self.tree.get_mut(place).and_then(|entry| entry.file.take()) else { return };
        self.on_disk.remove(&kept.time);
        self.folder_bytes -= kept.item.bytes();
        kept.item.remove(&self.log);
    }

    /// Forgets an entry that has neither states nor a file.
    fn prune(&mut self, place: Place) {
        if self.tree.get_mut(place).is_some_and(|entry| entry.memory.is_none() && entry.file.is_none()) {
            self.tree.remove(place);
        }
    }

    /// Takes note of the files that were written meanwhile.
    fn collect_written(&mut self) {
        while let Some(Written { tokens, file }) = self.folder.as_mut().and_then(Folder::next_written) {
            self.add_file(&tokens, file);
        }
    }
}
