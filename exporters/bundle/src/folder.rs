//! A folder that appears whole or not at all.

use crate::Error;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// A folder being built beside its target; dropped without [`Folder::publish`], it is removed.
pub(crate) struct Folder {
    building: tempfile::TempDir,
    target: PathBuf,
    /// A file that the folder to be replaced must hold, so that `--force` never removes something else.
    mark: &'static str,
}

impl Folder {
    /// Starts a folder for `target`. A target that exists is replaced only if `force` says so and it holds `mark`
    /// or nothing.
    pub(crate) fn create(target: &Path, mark: &'static str, force: bool) -> Result<Self, Error> {
        let target = std::path::absolute(target).map_err(Error::io(target))?;
        if target.symlink_metadata().is_ok() {
            if !force {
                return Err(Error::Exists { path: target });
            }
            replaceable(&target, mark)?;
        }
        let (Some(parent), Some(name)) = (target.parent(), target.file_name()) else {
            return Err(Error::Target { path: target, problem: "expected a folder's path".to_owned() });
        };
        fs::create_dir_all(parent).map_err(Error::io(parent))?;
        let building = tempfile::Builder::new()
            .prefix(&format!(".{}.partial-", name.to_string_lossy()))
            .tempdir_in(parent)
            .map_err(Error::io(parent))?;
        Ok(Self { building, target, mark })
    }

    /// Where to write.
    pub(crate) fn path(&self) -> &Path {
        self.building.path()
    }

    /// Puts the folder in its target's place.
    pub(crate) fn publish(self) -> Result<PathBuf, Error> {
        let Self { building, target, mark } = self;
        readable_by_others(building.path())?;
        if target.symlink_metadata().is_ok() {
            replaceable(&target, mark)?;
            // The old folder steps aside first: a rename cannot replace a folder that is not empty.
            let parent = target.parent().unwrap_or(Path::new("."));
            let aside = tempfile::Builder::new().prefix(".replaced-").tempdir_in(parent).map_err(Error::io(parent))?;
            let old = aside.path().join("old");
            fs::rename(&target, &old).map_err(Error::io(&target))?;
            if let Err(error) = fs::rename(building.path(), &target) {
                fs::rename(&old, &target).map_err(Error::io(&target))?;
                return Err(Error::Io { path: target, error });
            }
        } else {
            fs::rename(building.path(), &target).map_err(Error::io(&target))?;
        }
        drop(building.keep());
        Ok(target)
    }
}

/// A folder made for one's own use only is opened to those whom the umask would let in.
#[cfg(unix)]
fn readable_by_others(folder: &Path) -> Result<(), Error> {
    use std::os::unix::fs::PermissionsExt;
    // What the umask leaves of a new folder's permissions is seen on a new folder only.
    let probe = folder.join(".mode");
    fs::create_dir(&probe).map_err(Error::io(&probe))?;
    let mode = fs::metadata(&probe).map_err(Error::io(&probe))?.permissions().mode();
    fs::remove_dir(&probe).map_err(Error::io(&probe))?;
    fs::set_permissions(folder, fs::Permissions::from_mode(mode)).map_err(Error::io(folder))
}

#[cfg(not(unix))]
fn readable_by_others(_: &Path) -> Result<(), Error> {
    Ok(())
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
