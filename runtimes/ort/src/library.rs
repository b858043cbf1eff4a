//! Finding and loading ONNX Runtime's shared library: nothing is linked, nothing is downloaded.

use densessm_session::{Device, Error, RuntimeId, RuntimeInfo, Unusable, UnusableReason, Version};
use ort::environment::Environment;
use std::{
    ffi::{CStr, OsString},
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, OnceLock, PoisonError},
};

/// The environment variable that names the library.
const VARIABLE: &str = "ORT_DYLIB_PATH";
/// The oldest ONNX Runtime whose interface this build can use.
const OLDEST: Version = Version::new(1, 22, 0);
/// The environment variables of the system's loader.
const LOADER: [&str; 3] = ["LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH"];
/// The system's library folders.
const SYSTEM: [&str; 6] = [
    "/usr/local/lib",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/opt/homebrew/lib",
];

/// ONNX Runtime, loaded into this process.
pub(crate) struct Loaded {
    pub(crate) environment: Environment,
    pub(crate) path: PathBuf,
    pub(crate) version: Version,
}

impl Loaded {
    pub(crate) fn info(&self, device: Device) -> RuntimeInfo {
        RuntimeInfo::from_library(RuntimeId::Ort, self.version, device, self.path.clone())
    }
}

/// Finds ONNX Runtime's library: the file that `ORT_DYLIB_PATH` names; without it beside the executable, then in the
/// packages of the active Python environment or of the Python on the path, then in the folders of the system's loader.
///
/// # Errors
/// When `ORT_DYLIB_PATH` names no file, or no library is found.
pub fn library() -> Result<PathBuf, Error> {
    find().map_err(|reason| Unusable::new(RuntimeId::Ort, Device::CPU, reason).into())
}

fn find() -> Result<PathBuf, UnusableReason> {
    if let Some(path) = std::env::var_os(VARIABLE).filter(|path| !path.is_empty()) {
        let path = PathBuf::from(path);
        // A library that was named explicitly is not silently replaced by another one.
        return if path.is_file() { Ok(path) } else { Err(UnusableReason::NoSuchFile { variable: VARIABLE, path }) };
    }
    let beside = std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_owned));
    let loader = LOADER.iter().filter_map(std::env::var_os);
    let loader: Vec<PathBuf> = loader.flat_map(|value| std::env::split_paths(&value).collect::<Vec<_>>()).collect();
    let system = loader.into_iter().chain(SYSTEM.map(PathBuf::from)).filter(|folder| folder.is_absolute());
    let found =
        beside.as_deref().and_then(newest_in).or_else(|| pythons().find_map(|python| newest_in(&package(&python)?)));
    found
        .or_else(|| system.into_iter().find_map(|folder| newest_in(&folder)))
        .ok_or(UnusableReason::LibraryNotFound { variable: VARIABLE, install: "pip install onnxruntime" })
}

/// The Python interpreters to query, that of the active environment first.
fn pythons() -> impl Iterator<Item = OsString> {
    let environment = std::env::var_os("VIRTUAL_ENV").filter(|root| !root.is_empty()).map(PathBuf::from);
    let active = environment
        .into_iter()
        .flat_map(|root| [root.join("bin").join("python3"), root.join("Scripts").join("python.exe")])
        .filter(|python| python.is_file());
    active.map(PathBuf::into_os_string).chain(["python3".into(), "python".into()])
}

/// The folder of a Python's `onnxruntime` package that contains the library. Python looks the package up without
/// importing it, and not in the working directory, from which nothing may be loaded.
fn package(python: &OsString) -> Option<PathBuf> {
    let script = "import sys; sys.path = [p for p in sys.path if p]; import importlib.util as u; \
                  s = u.find_spec('onnxruntime'); print(s.submodule_search_locations[0] if s else '')";
    let asked = Command::new(python).args(["-c", script]).output().ok()?;
    let package = String::from_utf8(asked.stdout).ok()?;
    let package = package.trim();
    (!package.is_empty()).then(|| Path::new(package).join("capi"))
}

/// The library in a folder: the plain name is preferred to versioned ones, and the newest of those to the others.
fn newest_in(folder: &Path) -> Option<PathBuf> {
    let names = fs::read_dir(folder).ok()?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let names = names.filter_map(|name| Some((version_in(&name)?, name)));
    let (_, name) = names.max_by_key(|(version, _)| (version.is_empty(), version.clone()))?;
    Some(folder.join(name))
}

/// The version numbers in the name of ONNX Runtime's library, empty for its plain name; none for any other file.
fn version_in(name: &str) -> Option<Vec<u32>> {
    let numbers = match name {
        "libonnxruntime.so" | "libonnxruntime.dylib" | "onnxruntime.dll" => return Some(Vec::new()),
        _ => {
            let rest = name.strip_prefix("libonnxruntime.")?;
            rest.strip_prefix("so.").or_else(|| rest.strip_suffix(".dylib"))?
        }
    };
    numbers.split('.').map(|number| number.parse().ok()).collect()
}

/// Loads ONNX Runtime, once for the whole process.
pub(crate) fn loaded() -> Result<&'static Loaded, UnusableReason> {
    static LOADED: OnceLock<Loaded> = OnceLock::new();
    // A process may have one environment only: a second caller waits for the first one's.
    static LOADING: Mutex<()> = Mutex::new(());
    let _loading = LOADING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(loaded) = LOADED.get() {
        return Ok(loaded);
    }
    let path = find()?;
    let broken = |problem: String| UnusableReason::BrokenLibrary { path: path.clone(), problem };
    let text = version(&path).map_err(broken)?;
    let unreadable = || broken(format!("expected a version number, got `{text}`"));
    let version = Version::parse(&text).ok_or_else(unreadable)?;
    if version < OLDEST {
        return Err(UnusableReason::TooOld { path, found: version, oldest: OLDEST });
    }
    let environment = ort::init_from(&path)
        .map_err(|error| error.to_string())
        .and_then(|builder| builder.with_telemetry(false).build().map_err(|error| error.to_string()))
        .map_err(broken)?;
    Ok(LOADED.get_or_init(|| Loaded { environment, path: path.clone(), version }))
}

/// The version of a library, which is read first: the rest of its interface depends on it.
fn version(path: &Path) -> Result<String, String> {
    type GetApiBase = unsafe extern "C" fn() -> *const ort::sys::OrtApiBase;
    // SAFETY: loading a library runs its initializers; this one is where the user or the system keeps ONNX Runtime.
    let library = unsafe { libloading::Library::new(path) }.map_err(|error| error.to_string())?;
    // SAFETY: a library that exports this name is ONNX Runtime, whose header declares it so.
    let base: libloading::Symbol<'_, GetApiBase> = unsafe { library.get(b"OrtGetApiBase\0") }
        .map_err(|_| "not ONNX Runtime: it has no OrtGetApiBase".to_owned())?;
    // SAFETY: the function takes nothing and returns a static table, whose first entries never change.
    let version = unsafe {
        let base = base();
        if base.is_null() {
            return Err("its OrtGetApiBase returns nothing".to_owned());
        }
        CStr::from_ptr(((*base).GetVersionString)())
    };
    let version = version.to_string_lossy().into_owned();
    // Unloading a library that may have started threads is not sound; and it is about to be used.
    std::mem::forget(library);
    Ok(version)
}
