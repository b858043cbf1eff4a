//! What of NVIDIA's software is installed: the driver with its GPUs, NVRTC, and the libraries that ONNX Runtime's
//! providers load.
//!
//! Libraries are loaded to find out whether that is possible, so this is for diagnostics only.

use crate::{
    Cache, DeviceInfo, Driver, Error, Nvrtc,
    context::describe,
    library::{Loaded, python_roots},
};
use std::{
    ffi::{c_char, c_int, c_uint},
    fs,
    path::{Path, PathBuf},
};

/// The driver and the GPUs that it finds.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct InstalledDriver {
    /// The file of the library, where the system reports it.
    pub path: Option<PathBuf>,
    /// The driver's version, such as `580.65.06`, where its management library (NVML) reports it.
    pub version: Option<String>,
    /// The newest CUDA version that the driver supports, major and minor.
    pub cuda: (u32, u32),
    /// The GPUs, in CUDA's order.
    pub gpus: Vec<DeviceInfo>,
}

impl InstalledDriver {
    /// Loads the driver and describes its GPUs.
    ///
    /// # Errors
    /// When the driver is missing or too old, or finds no GPU; the error names the package.
    pub fn find() -> Result<Self, Error> {
        let driver = Driver::open()?;
        let gpus = (0..driver.devices()).map(|ordinal| describe_gpu(&driver, ordinal));
        Ok(Self {
            path: loaded_path("libcuda.so"),
            version: driver_version(),
            cuda: driver.version(),
            gpus: gpus.collect::<Result<_, _>>()?,
        })
    }
}

fn describe_gpu(driver: &Driver, ordinal: usize) -> Result<DeviceInfo, Error> {
    let number = c_int::try_from(ordinal).map_err(|_| Error::NoDevice { ordinal, count: driver.devices() })?;
    let mut device = 0;
    // SAFETY: the function writes one integer.
    driver.check("cuDeviceGet", unsafe { (driver.functions.cuDeviceGet)(&raw mut device, number) })?;
    describe(driver, device)
}

/// Asks the driver's management library for the driver's version.
fn driver_version() -> Option<String> {
    type Plain = unsafe extern "C" fn() -> c_uint;
    type Text = unsafe extern "C" fn(*mut c_char, c_uint) -> c_uint;
    let name = if cfg!(windows) { "nvml.dll" } else { "libnvidia-ml.so.1" };
    let library = Loaded::open(Path::new(name), "the NVIDIA driver").ok()?;
    // SAFETY: the types are those of the documented interface (`nvml.h`).
    let (begin, end, version): (Plain, Plain, Text) = unsafe {
        (
            library.function("nvmlInit_v2").ok()?,
            library.function("nvmlShutdown").ok()?,
            library.function("nvmlSystemGetDriverVersion").ok()?,
        )
    };
    let mut text = [0_u8; 96];
    // SAFETY: the library is initialized first and shut down last; the function writes a terminated text into the buffer,
    // whose length it is given.
    let found = unsafe {
        if begin() != 0 {
            return None;
        }
        let status = version(text.as_mut_ptr().cast(), text.len() as c_uint);
        end();
        status == 0
    };
    let length = text.iter().position(|byte| *byte == 0)?;
    found.then(|| String::from_utf8_lossy(&text[..length]).into_owned())
}

/// The run-time compiler.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct InstalledNvrtc {
    /// The file of the library, or the name under which the system's loader found it.
    pub path: PathBuf,
    /// Its version, major and minor.
    pub version: (u32, u32),
}

impl InstalledNvrtc {
    /// Loads NVRTC as [`Nvrtc::open`] does.
    ///
    /// # Errors
    /// As [`Nvrtc::open`].
    pub fn find() -> Result<Self, Error> {
        let nvrtc = Nvrtc::open()?;
        Ok(Self { path: nvrtc.path().to_owned(), version: nvrtc.version() })
    }
}

/// A library of NVIDIA that a provider of ONNX Runtime needs.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct InstalledLibrary {
    /// Its file name, such as `libcublas.so.13`.
    pub name: String,
    /// The package that brings it.
    pub package: String,
    /// Whether it can be loaded.
    pub state: LibraryState,
}

/// Whether a library can be loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LibraryState {
    /// The system's loader finds it.
    Loaded {
        /// The file, where the system reports it.
        path: Option<PathBuf>,
        /// Its version, where it has a function for it.
        version: Option<String>,
    },
    /// It is in a Python package, where the system's loader does not search.
    NotSearched {
        /// The folder that the loader must be told of (`LD_LIBRARY_PATH`).
        folder: PathBuf,
    },
    /// It was not found, or cannot be loaded.
    Missing {
        /// What the system's loader says.
        problem: String,
    },
}

impl InstalledLibrary {
    /// Tries to load a library by its file name. `cuda` is the major version of CUDA that it belongs to, which decides
    /// between the packages that bring it.
    pub fn find(name: &str, cuda: u32) -> Self {
        let package = package(name, cuda);
        let state = match Loaded::open(Path::new(name), "its package") {
            Ok(library) => LibraryState::Loaded { path: loaded_path(name), version: version(&library, stem(name)) },
            Err(problem) => match in_python_packages(name) {
                Some(folder) => LibraryState::NotSearched { folder },
                None => LibraryState::Missing { problem },
            },
        };
        Self { name: name.to_owned(), package, state }
    }

    /// Returns whether it can be loaded.
    pub fn is_loaded(&self) -> bool {
        matches!(self.state, LibraryState::Loaded { .. })
    }
}

/// Returns whether a library of this name is one of NVIDIA's that comes in a package of its own; the driver does not.
pub fn is_nvidia_library(name: &str) -> bool {
    package_stem(stem(name)).is_some()
}

/// Returns the major version of CUDA that libraries belong to, from the names of those whose number is CUDA's.
pub fn cuda_major<'n>(names: impl IntoIterator<Item = &'n str>) -> Option<u32> {
    let numbered = |name: &&str| ["libcublas", "libcublasLt", "libcudart", "libnvrtc"].contains(&stem(name));
    let name = names.into_iter().find(numbered)?;
    name.split_once(".so.")?.1.split('.').next()?.parse().ok()
}

fn stem(name: &str) -> &str {
    name.split_once(".so").map_or(name, |(stem, _)| stem)
}

/// The name of the Python package without the suffix for CUDA's version.
fn package_stem(stem: &str) -> Option<&'static str> {
    Some(match stem {
        "libcublas" | "libcublasLt" => "nvidia-cublas",
        "libcudart" => "nvidia-cuda-runtime",
        "libcurand" => "nvidia-curand",
        "libcufft" => "nvidia-cufft",
        "libcudnn" => "nvidia-cudnn",
        "libnvrtc" => "nvidia-cuda-nvrtc",
        "libnvinfer" | "libnvinfer_plugin" | "libnvonnxparser" => "TensorRT",
        _ => return None,
    })
}

fn package(name: &str, cuda: u32) -> String {
    match package_stem(stem(name)) {
        Some("TensorRT") => "NVIDIA's download of TensorRT".to_owned(),
        // Since CUDA 13 the packages have no suffix, except cuDNN's, which has versions of its own.
        Some(package) if cuda < 13 || package == "nvidia-cudnn" => format!("the Python package {package}-cu{cuda}"),
        Some(package) => format!("the Python package {package}"),
        None => "the package of this library".to_owned(),
    }
}

/// Calls the library's own function for its version.
fn version(library: &Loaded, stem: &str) -> Option<String> {
    let property = match stem {
        "libcublas" => "cublasGetProperty",
        "libcublasLt" => "cublasLtGetProperty",
        "libcurand" => "curandGetProperty",
        "libcufft" => "cufftGetProperty",
        "libcudnn" => "cudnnGetProperty",
        "libcudart" => {
            // SAFETY: the type is that of the documented interface (`cuda_runtime_api.h`).
            let function =
                unsafe { library.function::<unsafe extern "C" fn(*mut c_int) -> c_int>("cudaRuntimeGetVersion") };
            let mut number = 0;
            // SAFETY: the function writes one integer.
            let status = unsafe { function.ok()?(&raw mut number) };
            return (status == 0).then(|| format!("{}.{}", number / 1000, number % 1000 / 10));
        }
        "libnvinfer" => {
            // SAFETY: the type is that of the documented interface (`NvInferRuntime.h`).
            let function = unsafe { library.function::<unsafe extern "C" fn() -> c_int>("getInferLibVersion") };
            // SAFETY: the function takes nothing and returns a number.
            let number = unsafe { function.ok()?() };
            return Some(tensorrt_version(number));
        }
        _ => return None,
    };
    // SAFETY: all of these have the documented type `status f(libraryPropertyType, int *)`.
    let function = unsafe { library.function::<unsafe extern "C" fn(c_int, *mut c_int) -> c_int>(property) }.ok()?;
    let number = |which: c_int| {
        let mut value = 0;
        // SAFETY: the function writes one integer.
        let status = unsafe { function(which, &raw mut value) };
        (status == 0).then_some(value)
    };
    // MAJOR_VERSION, MINOR_VERSION and PATCH_LEVEL.
    Some(format!("{}.{}.{}", number(0)?, number(1)?, number(2)?))
}

/// TensorRT counts `10000 major + 100 minor + patch` since version 10, and before that `1000 major + 100 minor + patch`.
fn tensorrt_version(number: c_int) -> String {
    let major = if number >= 100_000 { 10_000 } else { 1_000 };
    format!("{}.{}.{}", number / major, number % major / 100, number % 100)
}

/// The folder of a Python package of NVIDIA that holds the library.
fn in_python_packages(name: &str) -> Option<PathBuf> {
    let packages = python_roots().into_iter().filter_map(|root| fs::read_dir(root).ok()).flatten().flatten();
    packages.map(|package| package.path().join("lib")).find(|folder| folder.join(name).is_file())
}

/// The file of a library that is loaded into this process, where the system lists them.
fn loaded_path(name: &str) -> Option<PathBuf> {
    let maps = fs::read_to_string("/proc/self/maps").ok()?;
    let paths = maps.lines().filter_map(|line| line.find('/').map(|at| Path::new(&line[at..])));
    let is_it =
        |path: &&Path| path.file_name().and_then(|file| file.to_str()).is_some_and(|file| file.starts_with(name));
    paths.into_iter().find(is_it).map(Path::to_owned)
}

/// The folder of compiled kernels.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CacheFolder {
    /// The folder; it need not exist yet.
    pub path: PathBuf,
    /// Number of entries.
    pub entries: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Why no entry can be written there; none if it can be.
    pub problem: Option<String>,
}

impl CacheFolder {
    /// Describes the folder of a cache; returns none if the cache is disabled.
    ///
    /// Whether it can be written is tried with a temporary file, in the nearest folder above if the folder does not exist
    /// yet.
    pub fn of(cache: &Cache) -> Option<Self> {
        let path = cache.folder()?.to_owned();
        let files = fs::read_dir(&path).into_iter().flatten().flatten().filter_map(|entry| entry.metadata().ok());
        let sizes: Vec<u64> = files.filter(fs::Metadata::is_file).map(|file| file.len()).collect();
        let existing = path.ancestors().find(|folder| folder.as_os_str().is_empty() || folder.exists());
        let existing = existing.filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let tried = tempfile::Builder::new().prefix(".kernel-").tempfile_in(existing);
        let problem = tried.err().map(|error| error.to_string());
        Some(Self { path, entries: sizes.len(), bytes: sizes.iter().sum(), problem })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_named_for_the_version_of_cuda() {
        for (library, cuda, expected) in [
            ("libcublas.so.13", 13, "the Python package nvidia-cublas"),
            ("libcublasLt.so.12", 12, "the Python package nvidia-cublas-cu12"),
            ("libcudart.so.12", 12, "the Python package nvidia-cuda-runtime-cu12"),
            ("libcudnn.so.9", 13, "the Python package nvidia-cudnn-cu13"),
            ("libcurand.so.10", 13, "the Python package nvidia-curand"),
            ("libnvinfer.so.10", 12, "NVIDIA's download of TensorRT"),
        ] {
            assert_eq!(package(library, cuda), expected, "{library}");
        }
        assert!(is_nvidia_library("libcufft.so.12") && !is_nvidia_library("libcuda.so.1"));
        assert!(!is_nvidia_library("libstdc++.so.6"));
    }

    #[test]
    fn the_version_of_cuda_is_read_from_the_libraries_that_share_it() {
        assert_eq!(cuda_major(["libcurand.so.10", "libcudnn.so.9", "libcudart.so.13"]), Some(13));
        assert_eq!(cuda_major(["libm.so.6", "libcublas.so.12"]), Some(12));
        assert_eq!(cuda_major(["libcurand.so.10"]), None);
    }

    #[test]
    fn versions_of_tensorrt_are_read_in_both_ways_of_counting() {
        assert_eq!(tensorrt_version(101_303), "10.13.3");
        assert_eq!(tensorrt_version(8_601), "8.6.1");
    }

    #[test]
    fn a_library_that_is_nowhere_is_missing_with_the_words_of_the_loader() {
        let library = InstalledLibrary::find("libcublas.so.999", 999);
        assert!(matches!(&library.state, LibraryState::Missing { problem } if problem.contains("libcublas.so.999")));
        assert!(!library.is_loaded());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_library_that_the_loader_finds_is_loaded_from_its_path() {
        let library = InstalledLibrary::find("libc.so.6", 13);
        let LibraryState::Loaded { path: Some(path), version: None } = library.state else { panic!("{library:?}") };
        assert!(path.is_absolute() && path.ends_with("libc.so.6"), "{path:?}");
    }

    #[test]
    fn the_cache_folder_is_described_without_being_created() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path().join("new").join("deep"));
        let found = CacheFolder::of(&cache).unwrap();
        assert_eq!((found.entries, found.bytes, found.problem.as_ref()), (0, 0, None));
        assert!(!found.path.exists());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "the trial leaves a file");
        fs::create_dir_all(&found.path).unwrap();
        fs::write(found.path.join("a"), [0; 7]).unwrap();
        let found = CacheFolder::of(&cache).unwrap();
        assert_eq!((found.entries, found.bytes), (1, 7));
        let file = tempfile::NamedTempFile::new().unwrap();
        let found = CacheFolder::of(&Cache::at(file.path().join("below a file"))).unwrap();
        assert!(found.problem.is_some());
        assert!(CacheFolder::of(&Cache::disabled()).is_none());
    }
}
