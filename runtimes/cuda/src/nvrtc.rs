//! NVRTC, NVIDIA's run-time compiler: CUDA C++ in, machine code out, no GPU needed.

use crate::{
    Architecture, Error, Unit,
    library::{Loaded, python_folders},
};
use std::{
    ffi::{CStr, CString, c_char, c_int, c_void},
    fmt, fs,
    path::{Path, PathBuf},
    sync::Arc,
};

/// The variable that names the library, or the folder that holds it.
const VARIABLE: &str = "DENSESSM_NVRTC";
const PACKAGE: &str = "the Python package nvidia-cuda-nvrtc";
/// The library's names, the newest first.
const NAMES: &[&str] = if cfg!(windows) {
    &["nvrtc64_130_0.dll", "nvrtc64_120_0.dll"]
} else {
    &["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"]
};
/// How the name of the library begins that NVRTC loads for itself.
const BUILTINS: &str = if cfg!(windows) { "nvrtc-builtins" } else { "libnvrtc-builtins.so" };
/// The oldest version that compiles every kernel.
const OLDEST: (u32, u32) = (12, 0);

type Status = c_int;
type Program = *mut c_void;
const COMPILATION_FAILED: Status = 6;

macro_rules! functions {
    ($($name:ident($($argument:ty),*);)*) => {
        /// NVRTC's functions; each returns a status.
        #[allow(non_snake_case)]
        struct Functions {
            $($name: unsafe extern "C" fn($($argument),*) -> Status,)*
            nvrtcGetErrorString: unsafe extern "C" fn(Status) -> *const c_char,
        }

        impl Functions {
            fn load(library: &Loaded) -> Result<Self, Error> {
                // SAFETY: the types are those of NVRTC's documented interface (`nvrtc.h`).
                unsafe {
                    Ok(Self {
                        $($name: library.function(stringify!($name))?,)*
                        nvrtcGetErrorString: library.function("nvrtcGetErrorString")?,
                    })
                }
            }
        }
    };
}

functions! {
    nvrtcVersion(*mut c_int, *mut c_int);
    nvrtcCreateProgram(*mut Program, *const c_char, *const c_char, c_int, *const *const c_char, *const *const c_char);
    nvrtcCompileProgram(Program, c_int, *const *const c_char);
    nvrtcGetProgramLogSize(Program, *mut usize);
    nvrtcGetProgramLog(Program, *mut c_char);
    nvrtcGetCUBINSize(Program, *mut usize);
    nvrtcGetCUBIN(Program, *mut c_char);
    nvrtcDestroyProgram(*mut Program);
}

/// The run-time compiler, loaded.
pub struct Nvrtc {
    functions: Functions,
    version: (u32, u32),
    path: PathBuf,
}

impl fmt::Debug for Nvrtc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nvrtc").field("version", &self.version).field("path", &self.path).finish_non_exhaustive()
    }
}

impl Nvrtc {
    /// Loads the compiler: the file or folder that `DENSESSM_NVRTC` names, else what the packages of the active
    /// Python environment or of the Python on the path hold, else what the system's loader finds.
    ///
    /// # Errors
    /// When there is none, it is too old, or what `DENSESSM_NVRTC` names is not NVRTC.
    pub fn open() -> Result<Arc<Self>, Error> {
        if let Some(named) = std::env::var_os(VARIABLE).filter(|named| !named.is_empty()) {
            return Self::open_at(Path::new(&named));
        }
        let in_packages = python_folders().into_iter().find_map(|folder| library_in(&folder));
        if let Some(path) = in_packages {
            return Self::open_at(&path);
        }
        let mut problem = String::new();
        for name in NAMES {
            match Loaded::open(Path::new(name), PACKAGE) {
                Ok(library) => return Self::with(library),
                Err(error) => problem = error,
            }
        }
        Err(missing(problem))
    }

    /// Loads the compiler from a file, or from a folder that holds it.
    ///
    /// # Errors
    /// When it is not there, or too old.
    pub fn open_at(path: &Path) -> Result<Arc<Self>, Error> {
        let file = if path.is_dir() { library_in(path) } else { Some(path.to_owned()) };
        let file = file.ok_or_else(|| missing(format!("{}: no {} in this folder", path.display(), NAMES[0])))?;
        // NVRTC loads its second library by name, which the loader finds only if it is loaded already, or on the
        // search path, where one of another version may come first.
        if let Some(builtins) = file.parent().and_then(builtins_in) {
            Loaded::open(&builtins, PACKAGE).map_err(missing)?;
        }
        Self::with(Loaded::open(&file, PACKAGE).map_err(missing)?)
    }

    fn with(library: Loaded) -> Result<Arc<Self>, Error> {
        let functions = Functions::load(&library)?;
        let (mut major, mut minor) = (0, 0);
        // SAFETY: the function writes two integers.
        let status = unsafe { (functions.nvrtcVersion)(&raw mut major, &raw mut minor) };
        let version = (u32::try_from(major).unwrap_or(0), u32::try_from(minor).unwrap_or(0));
        let nvrtc = Self { functions, version, path: library.path };
        nvrtc.check("nvrtcVersion", status)?;
        if version < OLDEST {
            return Err(missing(format!("expected version {}.{} or newer, got {major}.{minor}", OLDEST.0, OLDEST.1)));
        }
        Ok(Arc::new(nvrtc))
    }

    /// Returns the version, major and minor.
    pub fn version(&self) -> (u32, u32) {
        self.version
    }

    /// Returns the path or name under which the library was loaded.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Compiles a unit; returns the cubin and the log, which holds each kernel's resources.
    pub(crate) fn compile(&self, unit: &Unit, architecture: Architecture) -> Result<(Vec<u8>, String), Error> {
        let terminated = |text: &str| {
            CString::new(text).map_err(|_| Error::argument("unit", "expected text without a zero byte, got one"))
        };
        let (source, name) = (terminated(unit.source())?, terminated(unit.name())?);
        let headers = unit.headers().iter().map(|(_, text)| terminated(text)).collect::<Result<Vec<_>, _>>()?;
        let names = unit.headers().iter().map(|(name, _)| terminated(name)).collect::<Result<Vec<_>, _>>()?;
        let options = unit.options(architecture);
        let options = options.iter().map(|option| terminated(option)).collect::<Result<Vec<_>, _>>()?;
        let pointers = |texts: &[CString]| texts.iter().map(|text| text.as_ptr()).collect::<Vec<_>>();
        let (headers, names, options) = (pointers(&headers), pointers(&names), pointers(&options));

        let mut program = OwnedProgram { nvrtc: self, program: std::ptr::null_mut() };
        // SAFETY: the strings are terminated, the arrays have as many entries as is said, and NVRTC copies them.
        let status = unsafe {
            (self.functions.nvrtcCreateProgram)(
                &raw mut program.program,
                source.as_ptr(),
                name.as_ptr(),
                headers.len() as c_int,
                headers.as_ptr(),
                names.as_ptr(),
            )
        };
        self.check("nvrtcCreateProgram", status)?;
        // SAFETY: the program is valid; the options are as above.
        let compiled =
            unsafe { (self.functions.nvrtcCompileProgram)(program.program, options.len() as c_int, options.as_ptr()) };
        let log = program.bytes(
            ("nvrtcGetProgramLogSize", self.functions.nvrtcGetProgramLogSize),
            ("nvrtcGetProgramLog", self.functions.nvrtcGetProgramLog),
        )?;
        let log = String::from_utf8_lossy(&log).trim_end_matches('\0').to_owned();
        if compiled == COMPILATION_FAILED {
            let (unit, architecture) = (unit.name().to_owned(), architecture.to_string());
            return Err(Error::Compilation { unit, architecture, log });
        }
        self.check("nvrtcCompileProgram", compiled)?;
        let image = program.bytes(
            ("nvrtcGetCUBINSize", self.functions.nvrtcGetCUBINSize),
            ("nvrtcGetCUBIN", self.functions.nvrtcGetCUBIN),
        )?;
        Ok((image, log))
    }

    fn check(&self, call: &'static str, status: Status) -> Result<(), Error> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: the function returns a static, terminated string for every status.
        let description = unsafe { CStr::from_ptr((self.functions.nvrtcGetErrorString)(status)) };
        let description = description.to_string_lossy().into_owned();
        Err(Error::Nvrtc { call, code: u32::try_from(status).unwrap_or(0), description })
    }
}

/// A program of NVRTC, destroyed when it is dropped.
struct OwnedProgram<'n> {
    nvrtc: &'n Nvrtc,
    program: Program,
}

/// A function of NVRTC and its name.
type Named<F> = (&'static str, F);

impl OwnedProgram<'_> {
    /// Asks for the length of a result and then for the result.
    fn bytes(
        &self,
        (size_call, size): Named<unsafe extern "C" fn(Program, *mut usize) -> Status>,
        (call, get): Named<unsafe extern "C" fn(Program, *mut c_char) -> Status>,
    ) -> Result<Vec<u8>, Error> {
        let mut length = 0;
        // SAFETY: the program is valid; one integer is written.
        self.nvrtc.check(size_call, unsafe { size(self.program, &raw mut length) })?;
        let mut bytes = vec![0_u8; length];
        // SAFETY: the buffer has the length that NVRTC said it needs.
        self.nvrtc.check(call, unsafe { get(self.program, bytes.as_mut_ptr().cast()) })?;
        Ok(bytes)
    }
}

impl Drop for OwnedProgram<'_> {
    fn drop(&mut self) {
        if !self.program.is_null() {
            // SAFETY: the program was created and is destroyed once. An error harms nothing.
            unsafe { (self.nvrtc.functions.nvrtcDestroyProgram)(&raw mut self.program) };
        }
    }
}

fn missing(problem: String) -> Error {
    Error::MissingLibrary {
        library: NAMES[0],
        package: PACKAGE,
        problem,
        advice: "`pip install nvidia-cuda-nvrtc`, or set DENSESSM_NVRTC to the library or its folder",
    }
}

/// The compiler's library in a folder, the newest first.
fn library_in(folder: &Path) -> Option<PathBuf> {
    NAMES.iter().map(|name| folder.join(name)).find(|path| path.is_file())
}

/// The second library in a folder.
fn builtins_in(folder: &Path) -> Option<PathBuf> {
    let files = fs::read_dir(folder).ok()?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    files.filter(|name| name.starts_with(BUILTINS)).min().map(|name| folder.join(name))
}
