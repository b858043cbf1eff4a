//! Finding ONNX Runtime's library: nothing is linked, nothing is downloaded.

use densessm_session::Error;
use ort::environment::Environment;
use std::{
    ffi::CStr,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

/// The variable that names the library outright.
const VARIABLE: &str = "ORT_DYLIB_PATH";
/// The oldest ONNX Runtime whose interface this build speaks.
const OLDEST: &str = "1.22";

/// ONNX Runtime, loaded into this process.
pub(crate) struct Loaded {
    pub(crate) environment: Environment,
    pub(crate) path: PathBuf,
    pub(crate) version: String,
}

/// Where ONNX Runtime's library is: what `ORT_DYLIB_PATH` names, else beside the executable, else in the site-packages
/// of the Python on the path, else where the system keeps libraries.
///
/// # Errors
/// When `ORT_DYLIB_PATH` names no file, or no library is found.
pub fn library() -> Result<PathBuf, Error> {
    if let Some(path) = std::env::var_os(VARIABLE).filter(|path| !path.is_empty()) {
        let path = PathBuf::from(path);
        // What was asked for by name is not silently replaced by something else.
        return if path.is_file() { Ok(path) } else { unusable(format!("{VARIABLE}: no file at {}", path.display())) };
    }
    let beside = std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_owned));
    let system = [
        "/usr/local/lib",
        "/usr/lib/x86_64-linux-gnu",
        "/usr/lib/aarch64-linux-gnu",
        "/usr/lib64",
        "/usr/lib",
        "/opt/homebrew/lib",
    ];
    let folders = beside.into_iter().chain(python()).chain(system.map(PathBuf::from));
    for folder in folders {
        if let Some(library) = newest_in(&folder) {
            return Ok(library);
        }
    }
    unusable(format!(
        "library not found in {VARIABLE}, beside the executable, in Python's packages or the system's; \
         `pip install onnxruntime`, or set {VARIABLE} to libonnxruntime"
    ))
}

fn unusable<T>(problem: String) -> Result<T, Error> {
    Err(Error::Unusable { what: "ONNX Runtime".to_owned(), problem })
}

/// The folder of the `onnxruntime` package of the Python on the path. Python is asked where it is, not to import it.
fn python() -> Option<PathBuf> {
    let script = "import importlib.util as u; s = u.find_spec('onnxruntime'); print(s.submodule_search_locations[0] if s else '')";
    let asked = Command::new("python3").args(["-c", script]).output().ok()?;
    let package = String::from_utf8(asked.stdout).ok()?;
    let package = package.trim();
    (!package.is_empty()).then(|| Path::new(package).join("capi"))
}

/// The library in a folder, the plain name before versioned ones, the newest of those first.
fn newest_in(folder: &Path) -> Option<PathBuf> {
    let is_library = |name: &str| {
        let versioned =
            name.strip_prefix("libonnxruntime.").is_some_and(|rest| rest.contains("dylib") || rest.starts_with("so"));
        versioned || name == "onnxruntime.dll"
    };
    let version = |name: &str| -> Vec<u32> { name.split('.').filter_map(|part| part.parse().ok()).collect() };
    let names = fs::read_dir(folder).ok()?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut names: Vec<String> = names.filter(|name| is_library(name)).collect();
    names.sort_by_key(|name| (version(name).is_empty(), version(name)));
    names.pop().map(|name| folder.join(name))
}

/// Loads ONNX Runtime, once for the whole process.
pub(crate) fn loaded() -> Result<&'static Loaded, Error> {
    static LOADED: OnceLock<Loaded> = OnceLock::new();
    if let Some(loaded) = LOADED.get() {
        return Ok(loaded);
    }
    let path = library()?;
    let version = version(&path).or_else(|problem| unusable(format!("{}: {problem}", path.display())))?;
    let minor = |version: &str| version.split('.').nth(1).and_then(|minor| minor.parse::<u32>().ok());
    if minor(&version) < minor(OLDEST) {
        return unusable(format!("{}: expected version {OLDEST} or newer, got {version}", path.display()));
    }
    let started = ort::init_from(&path)
        .map_err(|error| error.to_string())
        .and_then(|builder| builder.with_telemetry(false).build().map_err(|error| error.to_string()));
    match started {
        Ok(environment) => Ok(LOADED.get_or_init(|| Loaded { environment, path, version })),
        // Another thread was faster: there is one environment in a process.
        Err(_) if LOADED.get().is_some() => loaded(),
        Err(problem) => unusable(format!("{}: {problem}", path.display())),
    }
}

/// The version of a library, asked before anything else is: its interface differs from version to version.
fn version(path: &Path) -> Result<String, String> {
    type GetApiBase = unsafe extern "C" fn() -> *const ort::sys::OrtApiBase;
    // SAFETY: loading ONNX Runtime runs its initializers, which is what the user asked for.
    let library = unsafe { libloading::Library::new(path) }.map_err(|error| error.to_string())?;
    // SAFETY: a library that exports this name is ONNX Runtime, whose header declares it so.
    let base: libloading::Symbol<'_, GetApiBase> = unsafe { library.get(b"OrtGetApiBase\0") }
        .map_err(|_| "no ONNX Runtime: it has no OrtGetApiBase".to_owned())?;
    // SAFETY: the function takes nothing and returns a static table, whose first entries never change.
    let version = unsafe {
        let base = base();
        if base.is_null() {
            return Err("its OrtGetApiBase returns nothing".to_owned());
        }
        CStr::from_ptr(((*base).GetVersionString)())
    };
    let version = version.to_string_lossy().into_owned();
    // Unloading it while it may have started threads is not safe; it is about to be used anyway.
    std::mem::forget(library);
    Ok(version)
}
