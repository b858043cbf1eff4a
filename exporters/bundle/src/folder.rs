//! A folder that appears complete or not at all.
//!
//! It is built in a work folder beside its target, `.NAME.partial-XXXXXX`, and renamed when it is complete:
//!
//! | entry | content |
//! |---|---|
//! | `lock` | an empty file, locked by the process that writes for as long as that runs |
//! | `new` | the folder that is being built |
//! | `old` | the folder that is being replaced, between two renames |
//!
//! The operating system releases the lock however the process ends. A work folder whose lock is free was therefore left
//! behind by a process that was killed, and the next one with the same target removes it.

use crate::Error;
use std::{
    fs::{self, File, TryLockError},
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};
use tempfile::TempDir;

const LOCK: &str = "lock";
const NEW: &str = "new";
const OLD: &str = "old";

/// How often a work folder is created anew when another process has removed it before it was locked.
const ATTEMPTS: usize = 16;

/// A folder being built beside its target. It is removed if it is dropped without [`Folder::publish`].
pub(crate) struct Folder {
    // Fields are dropped in order: the lock is held until the work folder is gone.
    work: TempDir,
    path: PathBuf,
    /// Absent on file systems without locks: a work folder left there is never removed.
    lock: Option<File>,
    target: PathBuf,
    /// A file that a folder to be replaced must hold, so that `force` never removes something else.
    mark: &'static str,
    force: bool,
}

impl Folder {
    /// Starts a folder for `target`, and removes what a killed process with the same target left behind.
    ///
    /// A target that exists is replaced only if `force` is set and it holds the file `mark` or nothing.
    pub(crate) fn create(target: &Path, mark: &'static str, force: bool) -> Result<Self, Error> {
        let target = std::path::absolute(target).map_err(Error::io(target))?;
        let (Some(parent), Some(name)) = (target.parent(), target.file_name()) else {
            return Err(Error::Target { path: target, problem: "expected a folder's path".to_owned() });
        };
        let prefix = format!(".{}.partial-", name.to_string_lossy());
        // Names that are not Unicode could share a prefix.
        if name.to_str().is_some() {
            remove_abandoned(parent, &prefix, &target);
        }
        if exists(&target) {
            if !force {
                return Err(Error::Exists { path: target });
            }
            replaceable(&target, mark)?;
        }
        fs::create_dir_all(parent).map_err(Error::io(parent))?;
        for _ in 0..ATTEMPTS {
            if let Some((work, lock)) = start(parent, &prefix).map_err(Error::io(parent))? {
                return Ok(Self { path: work.path().join(NEW), work, lock, target, mark, force });
            }
        }
        let error = io::Error::other("work folders are removed by another process as soon as they are created");
        Err(Error::Io { path: parent.to_owned(), error })
    }

    /// Returns the folder to write into.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Renames the folder to its target and returns the target's absolute path.
    pub(crate) fn publish(self) -> Result<PathBuf, Error> {
        let Self { work, path, lock, target, mark, force } = self;
        if !exists(&target) {
            fs::rename(&path, &target).map_err(Error::io(&target))?;
        } else if force {
            replaceable(&target, mark)?;
            // A rename cannot replace a folder that is not empty.
            let old = work.path().join(OLD);
            fs::rename(&target, &old).map_err(Error::io(&target))?;
            if let Err(error) = fs::rename(&path, &target) {
                if let Err(error) = fs::rename(&old, &target) {
                    // The old folder must not be removed with the work folder.
                    return Err(Error::Io { path: work.keep().join(OLD), error });
                }
                return Err(Error::Io { path: target, error });
            }
        } else {
            return Err(Error::Exists { path: target });
        }
        drop(work);
        drop(lock);
        Ok(target)
    }
}

/// Creates and locks a work folder. Returns none if another process took it for an abandoned one before it was locked.
fn start(parent: &Path, prefix: &str) -> io::Result<Option<(TempDir, Option<File>)>> {
    let work = tempfile::Builder::new().prefix(prefix).tempdir_in(parent)?;
    let lock_path = work.path().join(LOCK);
    let lock = match File::options().write(true).create_new(true).open(&lock_path) {
        Ok(lock) => lock,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let lock = match lock.try_lock() {
        Ok(()) if exists(&lock_path) => Some(lock),
        Ok(()) | Err(TryLockError::WouldBlock) => return Ok(None),
        // A file system without locks. Without the file, too, nobody takes the folder for an abandoned one.
        Err(TryLockError::Error(_)) => match fs::remove_file(&lock_path) {
            Ok(()) => None,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        },
    };
    match fs::create_dir(work.path().join(NEW)) {
        Ok(()) => Ok(Some((work, lock))),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Removes the work folders for a target whose processes have ended without doing so.
///
/// What cannot be removed, such as another user's folder, does no harm and stays.
fn remove_abandoned(parent: &Path, prefix: &str, target: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let random = name.to_str().and_then(|name| name.strip_prefix(prefix));
        let is_work = random.is_some_and(|random| random.bytes().all(|byte| byte.is_ascii_alphanumeric()));
        if is_work && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            // An error leaves the folder to the next process.
            let _ = remove_if_abandoned(&entry.path(), target);
        }
    }
}

fn remove_if_abandoned(work: &Path, target: &Path) -> io::Result<()> {
    let lock_path = work.join(LOCK);
    if !exists(&lock_path) {
        // The process was killed before it created the lock. A folder that is not empty is not removed by this.
        return fs::remove_dir(work);
    }
    if !lock_path.symlink_metadata()?.is_file() {
        return Ok(());
    }
    let lock = File::options().write(true).open(&lock_path)?;
    if lock.try_lock().is_err() {
        return Ok(());
    }
    // The process was killed between moving the old folder away and moving the new one to its place.
    let old = work.join(OLD);
    if exists(&old) && !exists(target) {
        fs::rename(&old, target)?;
    }
    for folder in [work.join(NEW), old] {
        if exists(&folder) {
            fs::remove_dir_all(folder)?;
        }
    }
    fs::remove_dir_all(work)
}

fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

fn replaceable(target: &Path, mark: &str) -> Result<(), Error> {
    let problem = |problem: String| Err(Error::Target { path: target.to_owned(), problem });
    if !target.symlink_metadata().map_err(Error::io(target))?.is_dir() {
        return problem("expected a folder to replace, got something else".to_owned());
    }
    let empty = fs::read_dir(target).map_err(Error::io(target))?.next().is_none();
    if empty || target.join(mark).is_file() {
        return Ok(());
    }
    problem(format!("refusing to replace a folder without {mark} in it"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARK: &str = "mark";

    /// A folder to work in, and a target in it.
    fn place() -> (TempDir, PathBuf) {
        let parent = tempfile::tempdir().unwrap();
        let target = parent.path().join("target");
        (parent, target)
    }

    fn written(target: &Path, text: &str, force: bool) -> Result<Folder, Error> {
        let folder = Folder::create(target, MARK, force)?;
        fs::write(folder.path().join(MARK), text).unwrap();
        Ok(folder)
    }

    /// Ends a folder as a killed process does: the lock is released and nothing is removed.
    fn kill(folder: Folder) -> PathBuf {
        let Folder { work, lock, .. } = folder;
        drop(lock);
        work.keep()
    }

    fn entries(parent: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(parent).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_folder_is_complete_or_absent() {
        let (parent, target) = place();
        drop(written(&target, "dropped", false).unwrap());
        assert!(entries(parent.path()).is_empty());
        let folder = written(&target, "first", false).unwrap();
        assert!(!target.exists());
        folder.publish().unwrap();
        assert_eq!(entries(parent.path()), ["target"]);
        assert!(matches!(Folder::create(&target, MARK, false), Err(Error::Exists { .. })));
        written(&target, "second", true).unwrap().publish().unwrap();
        assert_eq!(fs::read_to_string(target.join(MARK)).unwrap(), "second");
        assert_eq!(entries(parent.path()), ["target"]);
    }

    #[test]
    fn of_two_at_once_the_second_replaces_only_with_force() {
        let (parent, target) = place();
        let [first, second] = [written(&target, "first", false).unwrap(), written(&target, "second", false).unwrap()];
        let third = written(&target, "third", true).unwrap();
        assert_eq!(entries(parent.path()).len(), 3);
        first.publish().unwrap();
        assert!(matches!(second.publish(), Err(Error::Exists { .. })));
        assert_eq!(fs::read_to_string(target.join(MARK)).unwrap(), "first");
        third.publish().unwrap();
        assert_eq!(fs::read_to_string(target.join(MARK)).unwrap(), "third");
        assert_eq!(entries(parent.path()), ["target"]);
    }

    #[test]
    fn the_next_folder_removes_those_of_killed_processes_and_no_others() {
        let (parent, target) = place();
        let live = written(&target, "live", false).unwrap();
        let killed = [kill(written(&target, "killed", false).unwrap()), kill(written(&target, "", false).unwrap())];
        let killed_early = parent.path().join(".target.partial-aaaaaa");
        fs::create_dir(&killed_early).unwrap();
        let other_target = kill(written(&parent.path().join("target.partial-b"), "other", false).unwrap());
        let foreign = parent.path().join(".target.partial-bbbbbb");
        fs::create_dir(&foreign).unwrap();
        fs::write(foreign.join("file"), "without a lock").unwrap();
        let file = parent.path().join(".target.partial-cccccc");
        fs::write(&file, "").unwrap();

        let next = written(&target, "next", false).unwrap();
        assert!(!killed[0].exists() && !killed[1].exists() && !killed_early.exists());
        assert!(other_target.exists() && foreign.exists() && file.exists());
        assert_eq!(fs::read_to_string(live.path().join(MARK)).unwrap(), "live");
        next.publish().unwrap();
        assert_eq!(fs::read_to_string(target.join(MARK)).unwrap(), "next");
        drop(live);
        assert_eq!(entries(parent.path()).len(), 4, "{:?}", entries(parent.path()));
    }

    #[test]
    fn a_process_killed_between_the_two_renames_loses_nothing() {
        let (parent, target) = place();
        written(&target, "old", false).unwrap().publish().unwrap();
        let folder = written(&target, "new", true).unwrap();
        fs::rename(&target, folder.work.path().join(OLD)).unwrap();
        kill(folder);
        assert!(matches!(Folder::create(&target, MARK, false), Err(Error::Exists { .. })));
        assert_eq!(fs::read_to_string(target.join(MARK)).unwrap(), "old");
        assert_eq!(entries(parent.path()), ["target"]);
    }

    #[cfg(unix)]
    #[test]
    fn a_published_folder_has_the_permissions_of_any_new_one() {
        use std::os::unix::fs::PermissionsExt;
        let (parent, target) = place();
        written(&target, "", false).unwrap().publish().unwrap();
        let usual = parent.path().join("usual");
        fs::create_dir(&usual).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&target), mode(&usual));
    }
}
