//! Finding ONNX Runtime's library: nothing is linked, nothing is downloaded.

use densessm_session::Error;
use ort::environment::Environment;
use std::{
    ffi::{CStr, OsString},
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, OnceLock, PoisonError},
};

/// The variable that names the library outright.
const VARIABLE: &str = "ORT_DYLIB_PATH";
/// The oldest ONNX Runtime whose interface this build speaks.
const OLDEST: [u32; 2] = [1, 22];
/// The variables that tell the system's loader where else to look.
const LOADER: [&str; 3] = ["LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH"];
/// Where systems keep libraries.
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
    pub(crate) version: String,
}

/// Where ONNX Runtime's library is: what `ORT_DYLIB_PATH` names, else beside the executable, else in the packages of the
/// active Python environment or of the Python on the path, else where the system's loader looks.
///
/// # Errors
/// When `ORT_DYLIB_PATH` names no file, or no library is found.
pub fn library() -> Result<PathBuf, Error> {
    if let Some(path) = std::env::var_os(VARIABLE).filter(|path| !path.is_empty()) {
        let path = PathBuf::from(path);
        // What was asked for by name is not silently replaced by something else.
        let missing = || unusable(format!("{VARIABLE}: no file at {}", path.display()));
        return if path.is_file() { Ok(path) } else { Err(missing()) };
    }
    let beside = std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_owned));
    let loader = LOADER.iter().filter_map(std::env::var_os);
    let loader: Vec<PathBuf> = loader.flat_map(|value| std::env::split_paths(&value).collect::<Vec<_>>()).collect();
    let system = loader.into_iter().chain(SYSTEM.map(PathBuf::from)).filter(|folder| folder.is_absolute());
    let found =
        beside.as_deref().and_then(newest_in).or_else(|| pythons().find_map(|python| newest_in(&package(&python)?)));
    found.or_else(|| system.into_iter().find_map(|folder| newest_in(&folder))).ok_or_else(|| {
        unusable(format!(
            "library not found in {VARIABLE}, beside the executable, in Python's packages or the system's; \
             `pip install onnxruntime`, or set {VARIABLE} to libonnxruntime"
        ))
    })
}

fn unusable(problem: String) -> Error {
    Error::Unusable { what: "ONNX Runtime".to_owned(), problem }
}

/// The Pythons to ask, that of the active environment first.
fn pythons() -> impl Iterator<Item = OsString> {
    let environment = std::env::var_os("VIRTUAL_ENV").filter(|root| !root.is_empty()).map(PathBuf::from);
    let active = environment
        .into_iter()
        .flat_map(|root| [root.join("bin").join("python3"), root.join("Scripts").join("python.exe")])
        .filter(|python| python.is_file());
    active.map(PathBuf::into_os_string).chain(["python3".into(), "python".into()])
}

/// The folder of a Python's `onnxruntime` package that holds the library. Python is asked where it is, not to import
/// it; and not to look in the working directory, from which nothing may be loaded.
fn package(python: &OsString) -> Option<PathBuf> {
    let script = "import sys; sys.path = [p for p in sys.path if p]; import importlib.util as u; \
                  s = u.find_spec('onnxruntime'); print(s.submodule_search_locations[0] if s else '')";
    let asked = Command::new(python).args(["-c", script]).output().ok()?;
    let package = String::from_utf8(asked.stdout).ok()?;
    let package = package.trim();
    (!package.is_empty()).then(|| Path::new(package).join("capi"))
}

/// The library in a folder, the plain name before versioned ones, the newest of those first.
fn newest_in(folder: &Path) -> Option<PathBuf> {
    let names = fs::read_dir(folder).ok()?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let names = names.filter_map(|name| Some((version_in(&name)?, name)));
    let (_, name) = names.max_by_key(|(version, _)| (version.is_empty(), version.clone()))?;
    Some(folder.join(name))
}

/// The numbers in the name of ONNX Runtime's library (none in its plain name); nothing if it is another file's name.
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
pub(crate) fn loaded() -> Result<&'static Loaded, Error> {
    static LOADED: OnceLock<Loaded> = OnceLock::new();
    // There may be one environment in a process: whoever comes second waits for the first one's.
    static LOADING: Mutex<()> = Mutex::new(());
    let _loading = LOADING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(loaded) = LOADED.get() {
        return Ok(loaded);
    }
    let path = library()?;
    let problem = |problem: String| unusable(format!("{}: {problem}", path.display()));
    let version = version(&path).map_err(problem)?;
    let numbers: Vec<u32> = version.split('.').map_while(|number| number.parse().ok()).collect();
    if numbers[..] < OLDEST[..] {
        let [major, minor] = OLDEST;
        return Err(problem(format!("expected version {major}.{minor} or newer, got {version}")));
    }
    let environment = ort::init_from(&path)
        .map_err(|error| error.to_string())
        .and_then(|builder| builder.with_telemetry(false).build().map_err(|error| error.to_string()))
        .map_err(problem)?;
    Ok(LOADED.get_or_init(|| Loaded { environment, path: path.clone(), version }))
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
