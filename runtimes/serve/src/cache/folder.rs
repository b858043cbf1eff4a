//! Cached states on disk: one file per state, in the format of `generate --save-state`, in a subfolder per model.
//!
//! A thread of its own writes them, so that the model does not wait for the disk. A file's metadata contains its prefix
//! and a checksum over prefix and numbers, so that a file that was damaged, exchanged or cut off is noticed.

use crate::{Error, Log, Metrics};
use densessm_session::{Bundle, Model, Snapshot, States};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, TrySendError, channel, sync_channel},
    },
    thread::JoinHandle,
    time::{Duration, SystemTime},
};

const EXTENSION: &str = "state";
/// Metadata of a file, as the caller of a snapshot keeps it.
const TOKENS: &str = "prefix_tokens";
const CHECKSUM: &str = "crc32";
const PENDING: &str = "pending_tokens";
/// The longest header that is read: that of a prefix of several million tokens.
const LONGEST_HEADER: u64 = 64 << 20;
/// States that wait to be written at most. Further ones are kept in memory only.
const BACKLOG: usize = 8;
/// A partial file of this age was left behind by a process that was killed.
const ABANDONED: Duration = Duration::from_secs(600);

/// A file with the state after a prefix.
pub(crate) struct StoredFile {
    path: PathBuf,
    bytes: u64,
}

/// A file and its prefix.
pub(crate) struct Written {
    pub(crate) tokens: Vec<u32>,
    pub(crate) file: StoredFile,
}

struct Task {
    tokens: Vec<u32>,
    path: PathBuf,
    snapshot: Snapshot,
}

/// The folder of one model's states, and the thread that writes to it.
pub(crate) struct Folder {
    path: PathBuf,
    sender: Option<SyncSender<Task>>,
    written: Receiver<Written>,
    writer: Option<JoinHandle<()>>,
}

impl Folder {
    /// Opens the folder of a bundle and returns the files in it that are whole, the least recently used first. Damaged
    /// ones are removed.
    pub(crate) fn open(
        root: &Path,
        bundle: &Bundle,
        log: &Log,
        metrics: &Arc<Metrics>,
    ) -> Result<(Self, Vec<Written>), Error> {
        let fingerprint = bundle.fingerprint();
        let path = root.join(fingerprint.get(..16).unwrap_or("model"));
        let stored = fs::create_dir_all(&path).and_then(|()| scan(&path, &fingerprint, log, metrics));
        let stored = stored.map_err(|error| Error::Io { path: path.clone(), error })?;
        let (sender, tasks) = sync_channel::<Task>(BACKLOG);
        let (done, written) = channel();
        let writer_log = log.clone();
        let write = move || {
            for Task { tokens, path, snapshot } in tasks {
                let size = snapshot.save(&path).map_err(|error| error.to_string());
                match size.and_then(|()| fs::metadata(&path).map_err(|error| error.to_string())) {
                    // An error means that the cache has been dropped; the file is found when it is opened again.
                    Ok(metadata) => {
                        drop(done.send(Written { tokens, file: StoredFile { path, bytes: metadata.len() } }));
                    }
                    Err(error) => writer_log.line("cache", &[("not_written", &path.display()), ("error", &error)]),
                }
            }
        };
        let writer = std::thread::Builder::new().name("state-writer".to_owned()).spawn(write).map_err(Error::Thread)?;
        Ok((Self { path, sender: Some(sender), written, writer: Some(writer) }, stored))
    }

    /// Hands a state to the writer; with more than it can keep up with, the state is not written.
    pub(crate) fn write(&mut self, tokens: &[u32], states: &States, log: &Log) {
        let path = self.path.join(format!("{}.{EXTENSION}", name(tokens)));
        let Some(sender) = &self.sender else { return };
        let snapshot = match states.snapshot() {
            Ok(snapshot) => labelled(snapshot, tokens),
            Err(error) => return log.line("cache", &[("not_written", &path.display()), ("error", &error)]),
        };
        let problem = match sender.try_send(Task { tokens: tokens.to_vec(), path, snapshot }) {
            Ok(()) => return,
            Err(TrySendError::Full(_)) => "the disk does not keep up",
            Err(TrySendError::Disconnected(_)) => "the thread that writes has ended",
        };
        log.line("cache", &[("not_written", &name(tokens)), ("error", &problem)]);
    }

    /// Returns a file that was written since the last call.
    pub(crate) fn next_written(&mut self) -> Option<Written> {
        self.written.try_recv().ok()
    }
}

impl Drop for Folder {
    /// Waits until everything is written.
    fn drop(&mut self) {
        self.sender = None;
        if let Some(writer) = self.writer.take() {
            // A panic of the thread has been printed; a file is whole or absent.
            let _ = writer.join();
        }
    }
}

impl StoredFile {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Reads the state after a prefix.
    pub(crate) fn load(&self, model: &mut dyn Model, tokens: &[u32]) -> Result<States, String> {
        let snapshot = Snapshot::load(&self.path).map_err(|error| error.to_string())?;
        if snapshot.lengths() != [tokens.len() as i64] {
            return Err(format!("lengths: expected {}, got {:?}", tokens.len(), snapshot.lengths()));
        }
        let metadata = |key: &str| snapshot.metadata().get(key).map_or("", String::as_str);
        if metadata(TOKENS) != list(tokens) {
            return Err(format!("{TOKENS}: expected the prefix that the file was written for"));
        }
        let expected = checksum(&snapshot, tokens);
        if metadata(CHECKSUM) != expected {
            return Err(format!("{CHECKSUM}: expected {}, got {expected}", metadata(CHECKSUM)));
        }
        model.restore(&snapshot).map_err(|error| error.to_string())
    }

    /// Notes the time of use, by which the files are ordered after a restart.
    pub(crate) fn touch(&self) {
        // Without it, the order is that of writing.
        let _ = File::options().append(true).open(&self.path).and_then(|file| file.set_modified(SystemTime::now()));
    }

    pub(crate) fn remove(self, log: &Log) {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                log.line("cache", &[("not_removed", &self.path.display()), ("error", &error)]);
            }
            _ => {}
        }
    }
}

fn name(tokens: &[u32]) -> String {
    let mut hash = Sha256::new();
    for token in tokens {
        hash.update(token.to_le_bytes());
    }
    hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

fn list(tokens: &[u32]) -> String {
    Value::from(tokens).to_string()
}

fn labelled(mut snapshot: Snapshot, tokens: &[u32]) -> Snapshot {
    let checksum = checksum(&snapshot, tokens);
    let metadata = snapshot.metadata_mut();
    metadata.insert(TOKENS.to_owned(), list(tokens));
    metadata.insert(PENDING.to_owned(), "[]".to_owned());
    metadata.insert(CHECKSUM.to_owned(), checksum);
    snapshot
}

/// CRC-32 over the prefix and every tensor with its name.
fn checksum(snapshot: &Snapshot, tokens: &[u32]) -> String {
    let mut hash = crc32fast::Hasher::new();
    for token in tokens {
        hash.update(&token.to_le_bytes());
    }
    for (name, tensor) in snapshot.tensors() {
        hash.update(name.as_bytes());
        hash.update(&tensor.values.to_le_bytes());
    }
    format!("{:08x}", hash.finalize())
}

/// The files of a folder, the least recently used first.
fn scan(folder: &Path, fingerprint: &str, log: &Log, metrics: &Metrics) -> io::Result<Vec<Written>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let (path, metadata) = (entry.path(), entry.metadata()?);
        let modified = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        let partial = entry.file_name().to_string_lossy().starts_with(".partial-");
        if partial && modified.elapsed().is_ok_and(|age| age > ABANDONED) {
            StoredFile { path, bytes: 0 }.remove(log);
            continue;
        }
        if partial || !metadata.is_file() || path.extension().is_none_or(|extension| extension != EXTENSION) {
            continue;
        }
        let file = StoredFile { path, bytes: metadata.len() };
        match prefix(&file, fingerprint) {
            Ok(tokens) => found.push((modified, Written { tokens, file })),
            Err(problem) => {
                metrics.cache_damaged.add(1);
                log.line("cache", &[("dropped", &file.path.display()), ("error", &problem)]);
                file.remove(log);
            }
        }
    }
    found.sort_by_key(|(modified, _)| *modified);
    Ok(found.into_iter().map(|(_, written)| written).collect())
}

/// Reads the prefix of a file from its header, and checks that the file has the size that the header states.
fn prefix(file: &StoredFile, fingerprint: &str) -> Result<Vec<u32>, String> {
    let text = |error: io::Error| error.to_string();
    let mut reader = File::open(&file.path).map_err(text)?;
    let mut length = [0; 8];
    reader.read_exact(&mut length).map_err(text)?;
    let length = u64::from_le_bytes(length);
    if length > LONGEST_HEADER.min(file.bytes) {
        return Err(format!("header: expected at most {} bytes, got {length}", LONGEST_HEADER.min(file.bytes)));
    }
    let mut header = vec![0; length as usize];
    reader.read_exact(&mut header).map_err(text)?;
    let header: Value = serde_json::from_slice(&header).map_err(|error| format!("header: {error}"))?;
    let end = |tensor: &Value| tensor["data_offsets"][1].as_u64().unwrap_or(0);
    let data = header.as_object().map_or(0, |tensors| tensors.values().map(end).max().unwrap_or(0));
    let expected = data.saturating_add(8 + length);
    if expected != file.bytes {
        return Err(format!("expected {expected} bytes, got {}", file.bytes));
    }
    let metadata = &header["__metadata__"];
    if metadata["densessm.model"] != fingerprint {
        return Err("expected states of this model".to_owned());
    }
    let tokens = metadata[format!("caller.{TOKENS}")].as_str().unwrap_or_default();
    let tokens: Vec<u32> =
        serde_json::from_str(tokens).map_err(|_| format!("{TOKENS}: expected a list of token ids"))?;
    let expected = format!("{}.{EXTENSION}", name(&tokens));
    match file.path.file_name() {
        Some(own) if own == expected.as_str() => Ok(tokens),
        _ => Err(format!("expected the name {expected} for its prefix")),
    }
}
