//! Compiled kernels on disk.
//!
//! An entry's name is a hash of all that determines its content. An entry is written to a temporary file and renamed, so
//! that a reader, in this process or another, sees a whole entry or none; it carries a checksum, so that a damaged one is
//! recognized. No fault of the cache is an error of its user: the kernel is compiled instead.

use sha2::{Digest, Sha256};
use std::{
    env, fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

/// The variable that names the folder; an empty value switches the cache off.
const VARIABLE: &str = "DENSESSM_CACHE_DIR";
/// How an entry begins; the last byte is the format's version.
const MAGIC: &[u8; 8] = b"DSSMKRN\x01";
const CHECKSUM: usize = 32;
/// No kernel's machine code is larger; a larger file is not read.
const MOST_BYTES: u64 = 64 << 20;

/// What the cache did for a compilation.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CacheStatus {
    /// The entry was there.
    Hit,
    /// The kernel was compiled, and the entry was written.
    Stored,
    /// The kernel was compiled, but the entry could not be written, for this reason; it will be compiled again.
    NotStored(String),
    /// The kernel was compiled, and there is no cache.
    Disabled,
}

/// A folder of compiled kernels.
#[derive(Clone, Debug)]
pub struct Cache {
    folder: Option<PathBuf>,
}

/// An entry's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) log: String,
    pub(crate) image: Vec<u8>,
}

impl Cache {
    /// The cache in the folder that the environment names: `DENSESSM_CACHE_DIR`, else `densessm/kernels` in
    /// `XDG_CACHE_HOME`, else in `.cache` of the home folder. With none of them, or with an empty
    /// `DENSESSM_CACHE_DIR`, nothing is cached.
    pub fn from_environment() -> Self {
        let variable = |name: &str| env::var_os(name).map(PathBuf::from);
        let own = |folder: PathBuf| folder.join("densessm").join("kernels");
        let folder = match variable(VARIABLE) {
            Some(named) => Some(named).filter(|named| !named.as_os_str().is_empty()),
            None => {
                let absolute = |folder: &PathBuf| folder.is_absolute();
                let home = || variable("HOME").or_else(|| variable("USERPROFILE")).filter(absolute);
                variable("XDG_CACHE_HOME").filter(absolute).or_else(|| Some(home()?.join(".cache"))).map(own)
            }
        };
        Self { folder }
    }

    /// The cache in a folder, which is created when the first entry is written.
    pub fn at(folder: impl Into<PathBuf>) -> Self {
        Self { folder: Some(folder.into()) }
    }

    /// A cache that holds nothing.
    pub fn disabled() -> Self {
        Self { folder: None }
    }

    /// Returns the folder, if there is one.
    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    /// The entry with this name, if it is there and undamaged.
    pub(crate) fn load(&self, name: &str) -> Option<Entry> {
        let path = self.folder.as_ref()?.join(name);
        if fs::metadata(&path).ok()?.len() > MOST_BYTES {
            return None;
        }
        decode(&fs::read(path).ok()?)
    }

    /// Writes an entry.
    pub(crate) fn store(&self, name: &str, entry: &Entry) -> CacheStatus {
        let Some(folder) = &self.folder else { return CacheStatus::Disabled };
        match write(folder, name, &encode(entry)) {
            Ok(()) => CacheStatus::Stored,
            Err(error) => CacheStatus::NotStored(format!("{}: {error}", folder.display())),
        }
    }
}

fn write(folder: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    // The temporary file is removed if anything fails before it gets its name.
    let mut file = tempfile::Builder::new().prefix(".kernel-").tempfile_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_data()?;
    file.persist(folder.join(name)).map_err(|error| error.error)?;
    Ok(())
}

/// `magic, checksum of the rest, length of the log, log, image`.
fn encode(entry: &Entry) -> Vec<u8> {
    let mut payload = (entry.log.len() as u64).to_le_bytes().to_vec();
    payload.extend_from_slice(entry.log.as_bytes());
    payload.extend_from_slice(&entry.image);
    let checksum = Sha256::digest(&payload);
    [&MAGIC[..], &checksum[..], &payload].concat()
}

fn decode(bytes: &[u8]) -> Option<Entry> {
    let (checksum, payload) = bytes.strip_prefix(MAGIC)?.split_at_checked(CHECKSUM)?;
    if Sha256::digest(payload)[..] != *checksum {
        return None;
    }
    let (length, rest) = payload.split_first_chunk()?;
    let (log, image) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
    Some(Entry { log: String::from_utf8(log.to_vec()).ok()?, image: image.to_vec() })
}

/// The hexadecimal hash of some texts; their boundaries count.
pub(crate) fn hash<'t>(texts: impl IntoIterator<Item = &'t str>) -> String {
    let mut hash = Sha256::new();
    for text in texts {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text.as_bytes());
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::{Cache, CacheStatus, Entry, decode, encode, hash};
    use std::fs;

    fn entry() -> Entry {
        Entry { log: "ptxas info".to_owned(), image: (0..200).collect() }
    }

    #[test]
    fn an_entry_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path().join("new").join("deep"));
        assert_eq!(cache.load("a"), None);
        assert_eq!(cache.store("a", &entry()), CacheStatus::Stored);
        assert_eq!(cache.load("a"), Some(entry()));
        let names = fs::read_dir(cache.folder().unwrap()).unwrap().count();
        assert_eq!(names, 1, "a temporary file is left");
    }

    #[test]
    fn no_damaged_entry_is_read() {
        let whole = encode(&entry());
        assert_eq!(decode(&whole), Some(entry()));
        for i in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[i] ^= 1;
            assert_eq!(decode(&flipped), None, "byte {i} flipped");
            assert_eq!(decode(&whole[..i]), None, "cut to {i} bytes");
        }
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_reported() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let cache = Cache::at(file.path().join("below a file"));
        assert!(matches!(cache.store("a", &entry()), CacheStatus::NotStored(_)));
        assert_eq!(cache.load("a"), None);
        assert_eq!(Cache::disabled().store("a", &entry()), CacheStatus::Disabled);
    }

    #[test]
    fn writers_at_once_leave_a_whole_entry() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path());
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..20 {
                        assert_eq!(cache.store("a", &entry()), CacheStatus::Stored);
                        assert_eq!(cache.load("a"), Some(entry()));
                    }
                });
            }
        });
    }

    #[test]
    fn boundaries_of_texts_count() {
        assert_ne!(hash(["ab", "c"]), hash(["a", "bc"]));
        assert_eq!(hash(["ab"]).len(), 64);
    }
}
