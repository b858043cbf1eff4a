//! ONNX Runtime's TensorRT provider: its options, and the cache of the engines that it builds.
//!
//! An engine is machine code for one graph, GPU, version of TensorRT and range of shapes, and takes seconds to minutes to
//! build. The folder that an engine is kept in names all of these. The provider writes engines in place, so a process
//! holds a lock of the folder while it loads graphs: another one waits and then finds complete files.
//!
//! The option `trt_fp16_enable` stays off for every precision. Without it, the provider builds strongly typed networks, in
//! which each value has the type that the graph gives it: half precision for the products of a half-precision bundle, fp32
//! for norms, recurrences and states. With it, TensorRT may compute those in half precision, too.

use crate::library::Loaded;
use densessm_cuda::{Architecture, Cache, DeviceInfo};
use densessm_proto::{GraphKind, Lowering, ShapeProfile, SizeRange};
use densessm_session::{Bundle, Error, LoadOptions, Provider, Version};
use ort::ep::TensorRT;
use std::{
    env,
    ffi::c_int,
    fs::{self, File},
    path::{Path, PathBuf},
};

/// The variable with which NVIDIA's libraries override whether fp32 products round their factors to TF32.
pub(crate) const TF32_VARIABLE: &str = "NVIDIA_TF32_OVERRIDE";

/// Where the engines of a bundle are kept, and for which shapes they are built.
#[derive(Debug)]
pub(crate) struct Engines {
    /// None if nothing can be written there: engines are then built each time.
    folder: Option<PathBuf>,
    profile: ShapeProfile,
}

impl Engines {
    /// Returns the place of a bundle's engines; none on devices other than TensorRT.
    ///
    /// # Errors
    /// When the bundle is not inline, or the process does not say whether products are rounded to TF32.
    pub(crate) fn open(
        bundle: &Bundle,
        options: &LoadOptions,
        loaded: &Loaded,
        gpu: &DeviceInfo,
    ) -> Result<Option<Self>, Error> {
        if options.device.provider() != Provider::TensorRt {
            return Ok(None);
        }
        let lowering = bundle.manifest().lowering;
        if lowering != Lowering::Inline {
            let problem =
                format!("expected lowering inline for TensorRT, got {lowering}; export with --target tensorrt");
            return Err(Error::Bundle { path: bundle.dir().to_owned(), problem });
        }
        let value = env::var(TF32_VARIABLE).ok();
        let Some(tf32) = value.as_deref().and_then(tf32) else {
            let got = value.map_or("nothing".to_owned(), |value| format!("`{value}`"));
            let problem = format!(
                "expected 0 (fp32 products in fp32) or 1 (TensorRT may round their factors to TF32), got {got}; set it \
                 before the process starts"
            );
            return Err(Error::Input { name: TF32_VARIABLE.to_owned(), problem });
        };
        let profile = options.shape_profile;
        // Without the version, an engine of another one could not be told apart.
        let place = Cache::from_environment().folder().zip(version()).map(|(cache, tensorrt)| {
            let (gpu, architecture) = (gpu.name.as_str(), gpu.architecture);
            let environment = Environment { gpu, architecture, tensorrt, ort: loaded.version, tf32, profile };
            cache.join("tensorrt").join(short(&bundle.fingerprint())).join(environment.folder())
        });
        Ok(Some(Self { folder: place.filter(|folder| writable(folder)), profile }))
    }

    /// Waits until no other process builds engines in this folder, and keeps others from doing so until the result is
    /// dropped. File systems without locks have none.
    pub(crate) fn lock(&self) -> Option<File> {
        let file = lock_file(self.folder.as_ref()?).ok()?;
        file.lock().is_ok().then_some(file)
    }

    /// Returns the provider for one graph of the bundle.
    pub(crate) fn provider(&self, device: i32, bundle: &Bundle, kind: GraphKind, graph: &Path) -> TensorRT {
        let inputs = bundle.manifest().graph(kind).map(|graph| graph.inputs.as_slice()).unwrap_or_default();
        let [min, opt, max] = self.profile.shapes(inputs);
        let provider = TensorRT::default()
            .with_device_id(device)
            .with_fp16(false)
            .with_profile_min_shapes(min)
            .with_profile_opt_shapes(opt)
            .with_profile_max_shapes(max);
        let Some(folder) = &self.folder else { return provider };
        let name = graph.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let digest = bundle.manifest().files.iter().find(|file| file.name == name).map_or("", |file| &file.sha256);
        let folder = folder.to_string_lossy().into_owned();
        provider
            .with_engine_cache(true)
            .with_engine_cache_path(&folder)
            .with_engine_cache_prefix(format!("{}-{}", name.trim_end_matches(".onnx"), short(digest)))
            .with_timing_cache(true)
            .with_timing_cache_path(&folder)
    }

    /// Adds to ONNX Runtime's message what helps against a damaged engine.
    pub(crate) fn explain(&self, problem: String) -> String {
        match &self.folder {
            Some(folder) if problem.contains("deserialize") => {
                format!("{problem}; remove {} to have the engines built again", folder.display())
            }
            _ => problem,
        }
    }

    /// Checks that a call has a size that the engines accept; `width` is the number of tokens of each row in a call of the
    /// parallel graph.
    ///
    /// # Errors
    /// Naming the size and the range.
    pub(crate) fn check_shape(&self, rows: usize, width: Option<usize>) -> Result<(), Error> {
        check_size("batch", self.profile.batch, rows, "--batch-profile")?;
        width.map_or(Ok(()), |width| check_size("prompt", self.profile.prompt, width, "--prompt-profile"))
    }
}

fn check_size(name: &str, range: SizeRange, size: usize, option: &str) -> Result<(), Error> {
    if range.contains(size) {
        return Ok(());
    }
    let (min, max) = (range.min(), range.max());
    let problem = format!(
        "expected {min} to {max}, for which the TensorRT engines are built, got {size}; load with {option} \
         (LoadOptions::with_shape_profile)"
    );
    Err(Error::Input { name: name.to_owned(), problem })
}

/// Whether products may be rounded to TF32, by the value of the variable.
fn tf32(value: &str) -> Option<bool> {
    match value.trim() {
        "0" => Some(false),
        "1" => Some(true),
        _ => None,
    }
}

/// What an engine depends on beside the model.
struct Environment<'a> {
    gpu: &'a str,
    architecture: Architecture,
    tensorrt: Version,
    ort: Version,
    tf32: bool,
    profile: ShapeProfile,
}

impl Environment<'_> {
    /// Returns the name of the folder.
    fn folder(&self) -> String {
        let Self { gpu, architecture, tensorrt, ort, tf32, profile } = self;
        let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
        let gpu: String = gpu.chars().map(plain).collect();
        let range = |range: SizeRange| format!("{}_{}_{}", range.min(), range.opt(), range.max());
        let (tf32, batch, prompt) = (u8::from(*tf32), range(profile.batch), range(profile.prompt));
        format!("{gpu}-{architecture}-trt{tensorrt}-ort{ort}-tf32_{tf32}-batch{batch}-prompt{prompt}")
    }
}

/// The first digits of a digest, which tell files apart.
fn short(digest: &str) -> &str {
    digest.get(..16).unwrap_or(digest)
}

/// Whether the folder exists, or can be created, and takes files.
fn writable(folder: &Path) -> bool {
    fs::create_dir_all(folder).is_ok() && lock_file(folder).is_ok()
}

fn lock_file(folder: &Path) -> std::io::Result<File> {
    File::options().create(true).truncate(false).write(true).open(folder.join("lock"))
}

/// Returns the version of the TensorRT that the provider has loaded into this process.
fn version() -> Option<Version> {
    let library = loaded_tensorrt()?;
    // SAFETY: TensorRT's header declares the function as `int32_t getInferLibVersion() noexcept` with C linkage.
    let number = unsafe {
        let get: libloading::Symbol<'_, unsafe extern "C" fn() -> c_int> = library.get(b"getInferLibVersion\0").ok()?;
        get()
    };
    u32::try_from(number).ok().map(decode)
}

/// The version that a number stands for: in decimal digits, two each for minor and patch since TensorRT 10.
fn decode(number: u32) -> Version {
    match number {
        ..10_000 => Version::new(number / 1000, number / 100 % 10, number % 100),
        _ => Version::new(number / 10_000, number / 100 % 100, number % 100),
    }
}

#[cfg(target_os = "linux")]
fn loaded_tensorrt() -> Option<libloading::Library> {
    use libloading::os::unix::{Library, RTLD_NOW};
    /// Returns a library only if it is loaded already; the value of Linux.
    const RTLD_NOLOAD: c_int = 4;
    ["libnvinfer.so.10", "libnvinfer.so.11"].into_iter().find_map(|name| {
        // SAFETY: a library that is loaded already runs no initializers again.
        unsafe { Library::open(Some(name), RTLD_NOW | RTLD_NOLOAD) }.ok().map(Into::into)
    })
}

#[cfg(windows)]
fn loaded_tensorrt() -> Option<libloading::Library> {
    use libloading::os::windows::Library;
    ["nvinfer_10.dll", "nvinfer_11.dll"]
        .into_iter()
        .find_map(|name| Library::open_already_loaded(name).ok().map(Into::into))
}

#[cfg(not(any(target_os = "linux", windows)))]
fn loaded_tensorrt() -> Option<libloading::Library> {
    None
}

/// Disables TF32 in NVIDIA's libraries, unless the environment says something about it: the variable
/// `NVIDIA_TF32_OVERRIDE` becomes 0.
///
/// ONNX Runtime's TensorRT provider has no option for this, and TF32 is on by default: it rounds the factors of fp32
/// products to ten bits. The libraries read the variable when they are first used.
///
/// # Safety
/// No other thread of the process may read or write the environment at the same time. It is safe at the beginning of
/// `main`.
pub unsafe fn disable_tf32() {
    if env::var_os(TF32_VARIABLE).is_none() {
        // SAFETY: the caller's obligation.
        unsafe { env::set_var(TF32_VARIABLE, "0") };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn engines(folder: Option<&Path>) -> Engines {
        let [batch, prompt] = ["1,6,64", "2,512,2048"].map(|range| range.parse().unwrap());
        Engines { folder: folder.map(Path::to_owned), profile: ShapeProfile::new(batch, prompt) }
    }

    #[test]
    fn a_call_beyond_the_profile_is_an_error_that_names_the_option() {
        let engines = engines(None);
        assert!(engines.check_shape(64, None).is_ok() && engines.check_shape(1, Some(2048)).is_ok());
        let error = engines.check_shape(65, None).unwrap_err().to_string();
        assert!(error.contains("batch") && error.contains("1 to 64") && error.contains("--batch-profile"), "{error}");
        let error = engines.check_shape(64, Some(1)).unwrap_err().to_string();
        assert!(error.contains("2 to 2048") && error.contains("--prompt-profile"), "{error}");
    }

    #[test]
    fn versions_of_tensorrt_are_decoded() {
        assert_eq!(decode(8_601), Version::new(8, 6, 1));
        assert_eq!(decode(101_303), Version::new(10, 13, 3));
    }

    #[test]
    fn only_a_stated_choice_about_tf32_counts() {
        assert_eq!((tf32("0"), tf32("1"), tf32(""), tf32("off")), (Some(false), Some(true), None, None));
    }

    #[test]
    fn the_folder_names_all_that_an_engine_depends_on() {
        let profile = engines(None).profile;
        let environment = |gpu, minor, patch, tf32, profile| {
            let (tensorrt, ort) = (Version::new(10, 13, patch), Version::new(1, 31, 1));
            Environment { gpu, architecture: Architecture::new(9, minor), tensorrt, ort, tf32, profile }.folder()
        };
        let name = environment("NVIDIA H100 80GB HBM3", 0, 3, false, profile);
        let expected = "NVIDIA_H100_80GB_HBM3-sm_90-trt10.13.3-ort1.31.1-tf32_0-batch1_6_64-prompt2_512_2048";
        assert_eq!(name, expected);
        let others = [
            environment("NVIDIA H200", 0, 3, false, profile),
            environment("NVIDIA H100 80GB HBM3", 1, 3, false, profile),
            environment("NVIDIA H100 80GB HBM3", 0, 4, false, profile),
            environment("NVIDIA H100 80GB HBM3", 0, 3, true, profile),
            environment("NVIDIA H100 80GB HBM3", 0, 3, false, ShapeProfile::default()),
        ];
        assert!(others.iter().all(|other| *other != name && !other.contains(['/', '\\', ' '])), "{others:?}");
    }

    #[test]
    fn a_second_process_waits_until_the_first_has_loaded() {
        let folder = tempfile::tempdir().unwrap();
        let engines = engines(Some(folder.path()));
        let held = engines.lock().expect("the folder can be locked");
        assert!(lock_file(folder.path()).unwrap().try_lock().is_err());
        drop(held);
        assert!(lock_file(folder.path()).unwrap().try_lock().is_ok());
    }

    #[test]
    fn a_folder_that_takes_no_files_is_not_used() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(!writable(&file.path().join("below a file")));
        let folder = tempfile::tempdir().unwrap();
        assert!(writable(&folder.path().join("new").join("folder")));
    }

    #[test]
    fn a_damaged_engine_is_explained() {
        let folder = tempfile::tempdir().unwrap();
        let engines = engines(Some(folder.path()));
        let explained = engines.explain("TensorRT EP could not deserialize engine from cache: x".to_owned());
        assert!(explained.contains(&folder.path().display().to_string()), "{explained}");
        assert_eq!(engines.explain("other".to_owned()), "other");
    }
}
