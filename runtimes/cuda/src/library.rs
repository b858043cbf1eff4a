//! Finding shared libraries: named by a variable, known to the system's loader, or in Python's packages.

use crate::Error;
use libloading::Library;
use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
};

/// A shared library that stays loaded until the process ends: the driver and NVRTC start threads of their own, and
/// unloading code under a running thread is undefined.
pub(crate) struct Loaded {
    library: &'static Library,
    pub(crate) path: PathBuf,
    pub(crate) package: &'static str,
}

impl Loaded {
    /// Loads a library by path, or by a name that the system's loader knows.
    ///
    /// # Errors
    /// What the system's loader says.
    pub(crate) fn open(path: &Path, package: &'static str) -> Result<Self, String> {
        // SAFETY: loading a library runs its initializers. The path is either the driver's own name, or was named by
        // the user, or lies in a Python package of NVIDIA; all are code that the user means to run.
        let library = unsafe { Library::new(path) };
        let library = library.map_err(|error| match std::error::Error::source(&error) {
            Some(source) => source.to_string(),
            None => error.to_string(),
        })?;
        Ok(Self { library: Box::leak(Box::new(library)), path: path.to_owned(), package })
    }

    /// Looks a function up.
    ///
    /// # Safety
    /// `F` must be the function pointer type that the library's documentation gives for `name`.
    pub(crate) unsafe fn function<F: Copy>(&self, name: &'static str) -> Result<F, Error> {
        let terminated = [name.as_bytes(), b"\0"].concat();
        // SAFETY: the caller says that the type is right; the library is never unloaded, so the pointer stays valid.
        let symbol = unsafe { self.library.get::<F>(&terminated[..]) };
        symbol.map(|symbol| *symbol).map_err(|_| Error::MissingFunction {
            path: self.path.clone(),
            function: name,
            package: self.package,
        })
    }
}

/// The folders of Python's NVIDIA packages that may hold libraries: those of the active environment first.
pub(crate) fn python_folders() -> Vec<PathBuf> {
    let folders = python_roots().into_iter().flat_map(|root| {
        ["cu13/lib", "cuda_nvrtc/lib", "cu13/bin/x86_64", "cuda_nvrtc/bin"].map(|folder| root.join(folder))
    });
    folders.filter(|folder| folder.is_dir()).collect()
}

/// The folders that hold Python's NVIDIA packages: those of the active environment first.
pub(crate) fn python_roots() -> Vec<PathBuf> {
    pythons().filter_map(|python| nvidia_packages(&python)).flatten().collect()
}

/// The Python interpreters to ask, that of the active environment first.
fn pythons() -> impl Iterator<Item = OsString> {
    let environment = std::env::var_os("VIRTUAL_ENV").filter(|root| !root.is_empty()).map(PathBuf::from);
    let active = environment
        .into_iter()
        .flat_map(|root| [root.join("bin").join("python3"), root.join("Scripts").join("python.exe")])
        .filter(|python| python.is_file());
    active.map(PathBuf::into_os_string).chain(["python3".into(), "python".into()])
}

/// Asks a Python where its `nvidia` packages lie. Nothing is imported, and the working directory is not searched: code
/// must not be loaded from it.
fn nvidia_packages(python: &OsString) -> Option<Vec<PathBuf>> {
    let script = "import sys; sys.path = [p for p in sys.path if p]; import importlib.util as u; \
                  s = u.find_spec('nvidia'); print('\\n'.join(s.submodule_search_locations) if s else '')";
    let output = Command::new(python).args(["-c", script]).output().ok()?;
    let output = String::from_utf8(output.stdout).ok()?;
    Some(output.lines().filter(|line| !line.is_empty()).map(PathBuf::from).collect())
}
