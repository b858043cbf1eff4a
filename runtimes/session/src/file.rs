//! Writing a file so that it appears complete or not at all.

use std::{
    io::{self, Write},
    path::Path,
};

/// Writes a file beside its target first and renames it, so that a failure leaves no half of a file under its name.
///
/// The file has the permissions of a newly created one.
///
/// # Errors
/// When the folder is not writable or the disk is full; the target is then as it was.
pub fn write_atomically(path: &Path, content: &[u8]) -> io::Result<()> {
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    // By default a temporary file is readable by its owner only; here the umask decides, as for any new file.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut file = builder.prefix(".partial-").tempfile_in(folder)?;
    file.write_all(content)?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}
