//! The GPU's part of `densessm doctor`: driver, GPUs, NVRTC, ONNX Runtime's providers with what they load, and the cache.

use crate::terminal;
use densessm_cuda::{
    Architecture, Cache, DeviceInfo, Error,
    installed::{
        CacheFolder, InstalledDriver, InstalledLibrary, InstalledNvrtc, LibraryState, cuda_major, is_nvidia_library,
    },
    needed_libraries,
};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// What of TensorRT this project was tested with.
pub(crate) const TENSORRT_NOTE: &str = "the graphs were checked with the parser and builder of TensorRT-RTX only, which \
                                        need no GPU; nothing has been run on TensorRT itself";
/// The version of CUDA whose libraries are looked for where nothing says which one is wanted.
const DEFAULT_CUDA: u32 = 13;
/// The architecture of the oldest GPUs that the kernels run on.
const OLDEST: Architecture = Architecture::new(8, 0);
const PROVIDER_PACKAGE: &str = "the Python package onnxruntime-gpu";

/// One thing that a GPU needs, and whether it is there.
pub(crate) struct Finding {
    pub(crate) name: String,
    pub(crate) found: bool,
    /// Version and origin, or what is missing and how to get it.
    pub(crate) detail: String,
    /// The same for programs.
    pub(crate) data: Value,
}

impl Finding {
    fn new(name: impl Into<String>, found: bool, detail: impl Into<String>, data: Value) -> Self {
        Self { name: name.into(), found, detail: detail.into(), data }
    }

    fn missing(name: impl Into<String>, problem: impl ToString, package: &str) -> Self {
        Self::new(name, false, problem.to_string(), json!({ "package": package }))
    }

    pub(crate) fn to_json(&self) -> Value {
        let mut value = json!({ "name": self.name, "found": self.found, "detail": self.detail });
        if let (Value::Object(all), Value::Object(data)) = (&mut value, &self.data) {
            all.extend(data.clone());
        }
        value
    }
}

/// Finds everything that GPUs need. `runtime` is ONNX Runtime's library, if there is one.
pub(crate) fn findings(runtime: Option<&Path>) -> Vec<Finding> {
    let mut all = driver(InstalledDriver::find());
    let nvrtc = InstalledNvrtc::find();
    let major = nvrtc.as_ref().map_or(DEFAULT_CUDA, |nvrtc| nvrtc.version.0);
    all.push(compiler(nvrtc));
    for (provider, defaults) in [("cuda", cuda_defaults(major)), ("tensorrt", vec!["libnvinfer.so.10".to_owned()])] {
        let (finding, needed) = provider_library(provider, runtime);
        all.push(finding);
        let needed = if needed.is_empty() { defaults } else { needed };
        let cuda = cuda_major(needed.iter().map(String::as_str)).unwrap_or(major);
        for name in needed {
            // Both providers need some of the libraries.
            if all.iter().all(|finding| finding.name != name) {
                all.push(library(InstalledLibrary::find(&name, cuda)));
            }
        }
    }
    all.push(cache(CacheFolder::of(&Cache::from_environment())));
    all
}

fn driver(found: Result<InstalledDriver, Error>) -> Vec<Finding> {
    let package = "the NVIDIA driver";
    let driver = match found {
        Ok(driver) => driver,
        Err(error) => return vec![Finding::missing("driver", error, package)],
    };
    let (major, minor) = driver.cuda;
    let version = driver.version.as_deref().unwrap_or("of unknown version");
    let detail = format!("{version}, supports CUDA {major}.{minor}{}", at(driver.path.as_deref()));
    let data = json!({
        "version": driver.version, "cuda": format!("{major}.{minor}"), "path": driver.path, "package": package,
    });
    let gpus = driver.gpus.iter().enumerate().map(|(index, gpu)| device(index, gpu));
    [Finding::new("driver", true, detail, data)].into_iter().chain(gpus).collect()
}

fn device(index: usize, gpu: &DeviceInfo) -> Finding {
    let supported = gpu.architecture >= OLDEST;
    let mut detail = format!(
        "{}, {}, {:.1} GiB, {} multiprocessors",
        gpu.name,
        gpu.architecture,
        gpu.memory as f64 / f64::from(1 << 30),
        gpu.multiprocessors
    );
    if !supported {
        detail.push_str(&format!("; too old for the kernels, expected {OLDEST} or newer"));
    }
    let data = json!({
        "gpu": gpu.name, "architecture": gpu.architecture.to_string(), "memory_bytes": gpu.memory,
        "multiprocessors": gpu.multiprocessors,
    });
    Finding::new(format!("GPU {index}"), supported, detail, data)
}

fn compiler(found: Result<InstalledNvrtc, Error>) -> Finding {
    let package = "the Python package nvidia-cuda-nvrtc";
    match found {
        Ok(nvrtc) => {
            let (major, minor) = nvrtc.version;
            let detail = format!("{major}.{minor}{}", at(Some(&nvrtc.path)));
            let data = json!({ "version": format!("{major}.{minor}"), "path": nvrtc.path, "package": package });
            Finding::new("NVRTC", true, detail, data)
        }
        Err(error) => Finding::missing("NVRTC", error, package),
    }
}

/// The shared library of a provider, which lies beside ONNX Runtime's, and the libraries of NVIDIA that it needs.
fn provider_library(provider: &str, runtime: Option<&Path>) -> (Finding, Vec<String>) {
    let name = format!("{provider} provider");
    let (prefix, suffix) = if cfg!(windows) { ("", "dll") } else { ("lib", "so") };
    let file = format!("{prefix}onnxruntime_providers_{provider}.{suffix}");
    let Some(runtime) = runtime else {
        let problem = format!("{file}: expected it beside ONNX Runtime's library, which was not found");
        return (Finding::missing(name, problem, PROVIDER_PACKAGE), Vec::new());
    };
    // The library is often named by a link.
    let folders = [Some(runtime.to_owned()), runtime.canonicalize().ok()];
    let files = folders.into_iter().flatten().filter_map(|path| Some(path.parent()?.join(&file)));
    let Some(path) = files.into_iter().find(|path| path.is_file()) else {
        let folder = runtime.parent().map_or_else(PathBuf::new, Path::to_owned);
        let problem = format!("{file}: not in {}; `pip install onnxruntime-gpu` brings it", folder.display());
        return (Finding::missing(name, problem, PROVIDER_PACKAGE), Vec::new());
    };
    let needed: Vec<String> = match needed_libraries(&path) {
        Ok(needed) => needed.into_iter().filter(|name| is_nvidia_library(name)).collect(),
        Err(_) => Vec::new(),
    };
    let list = if needed.is_empty() { String::new() } else { format!(", needs {}", needed.join(", ")) };
    let data = json!({ "path": path, "needs": needed, "package": PROVIDER_PACKAGE });
    (Finding::new(name, true, format!("{}{list}", path.display()), data), needed)
}

/// The libraries that every build of the CUDA provider needs.
fn cuda_defaults(major: u32) -> Vec<String> {
    let numbered = ["libcudart", "libcublas", "libcublasLt"].map(|name| format!("{name}.so.{major}"));
    numbered.into_iter().chain(["libcurand.so.10".to_owned()]).collect()
}

fn library(library: InstalledLibrary) -> Finding {
    let InstalledLibrary { name, package, state, .. } = library;
    let mut data = json!({ "package": package });
    let (found, detail) = match state {
        LibraryState::Loaded { path, version } => {
            data["version"] = json!(version);
            data["path"] = json!(path);
            (true, format!("{}{}", version.as_deref().unwrap_or("of unknown version"), at(path.as_deref())))
        }
        LibraryState::NotSearched { folder } => {
            data["folder"] = json!(folder);
            let folder = folder.display();
            (false, format!("in {folder}, where the loader does not search; add the folder to LD_LIBRARY_PATH"))
        }
        LibraryState::Missing { problem } => (false, format!("{problem}; {package} brings it")),
        _ => (false, format!("unknown; {package} brings it")),
    };
    Finding::new(name, found, detail, data)
}

fn cache(folder: Option<CacheFolder>) -> Finding {
    let name = "kernel cache";
    let Some(folder) = folder else {
        let problem = "none: every start compiles the kernels; set DENSESSM_CACHE_DIR to a folder";
        return Finding::new(name, false, problem, Value::Null);
    };
    let path = folder.path.display();
    let data = json!({
        "path": folder.path, "entries": folder.entries, "bytes": folder.bytes, "writable": folder.problem.is_none(),
    });
    let size = format!("{} entries, {}", folder.entries, terminal::bytes(folder.bytes));
    match folder.problem {
        None => Finding::new(name, true, format!("{path}, writable, {size}"), data),
        Some(problem) => {
            let advice = "every start compiles what is not there; set DENSESSM_CACHE_DIR to a writable folder";
            Finding::new(name, false, format!("{path}, {size}, not writable: {problem}; {advice}"), data)
        }
    }
}

fn at(path: Option<&Path>) -> String {
    path.map_or_else(String::new, |path| format!(" at {}", path.display()))
}
