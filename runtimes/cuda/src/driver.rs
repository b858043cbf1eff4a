//! The CUDA driver's functions, looked up in `libcuda.so.1`.

use crate::{Error, library::Loaded};
use std::{
    ffi::{CStr, c_char, c_int, c_uint, c_void},
    fmt,
    path::Path,
    sync::Arc,
};

/// The driver's library.
const LIBRARY: &str = if cfg!(windows) { "nvcuda.dll" } else { "libcuda.so.1" };
const PACKAGE: &str = "the NVIDIA driver";
/// The oldest CUDA version with every function below.
const OLDEST: (u32, u32) = (12, 0);

pub(crate) type Status = c_uint;
pub(crate) const SUCCESS: Status = 0;
pub(crate) const OUT_OF_MEMORY: Status = 2;
const NO_DEVICE: Status = 100;
pub(crate) type Handle = *mut c_void;
pub(crate) type Address = u64;

/// `CUlaunchConfig`.
#[repr(C)]
pub(crate) struct LaunchConfig {
    pub(crate) grid: [c_uint; 3],
    pub(crate) block: [c_uint; 3],
    pub(crate) shared_bytes: c_uint,
    pub(crate) stream: Handle,
    pub(crate) attributes: *mut LaunchAttribute,
    pub(crate) attribute_count: c_uint,
}

/// `CUlaunchAttribute`: an identifier, four bytes of padding and a union of 64 bytes.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub(crate) struct LaunchAttribute {
    pub(crate) id: c_uint,
    pub(crate) padding: c_uint,
    pub(crate) value: [c_uint; 16],
}

/// `CUDA_MEMCPY3D`.
#[repr(C)]
pub(crate) struct Copy3d {
    pub(crate) source: Copy3dEnd,
    pub(crate) target: Copy3dEnd,
    pub(crate) size: [usize; 3],
}

/// Where a copy reads or writes: the fields that `CUDA_MEMCPY3D` has once for its source and once for its target.
#[repr(C)]
pub(crate) struct Copy3dEnd {
    /// Bytes, rows, slices and level of detail.
    pub(crate) start: [usize; 4],
    pub(crate) memory: c_uint,
    pub(crate) host: *mut c_void,
    pub(crate) device: Address,
    pub(crate) array: Handle,
    pub(crate) reserved: *mut c_void,
    pub(crate) pitch: usize,
    pub(crate) height: usize,
}

/// Declares the table of functions and how it is filled.
macro_rules! functions {
    ($($name:ident($($argument:ty),*);)*) => {
        /// The driver's functions; each returns a status.
        #[allow(non_snake_case)]
        pub(crate) struct Functions {
            $(pub(crate) $name: unsafe extern "system" fn($($argument),*) -> Status,)*
        }

        impl Functions {
            fn load(library: &Loaded) -> Result<Self, Error> {
                // SAFETY: the types are those of the driver's documented interface (`cuda.h`).
                unsafe { Ok(Self { $($name: library.function(stringify!($name))?,)* }) }
            }
        }
    };
}

functions! {
    cuInit(c_uint);
    cuGetErrorName(Status, *mut *const c_char);
    cuGetErrorString(Status, *mut *const c_char);
    cuDeviceGetCount(*mut c_int);
    cuDeviceGet(*mut c_int, c_int);
    cuDeviceGetName(*mut c_char, c_int, c_int);
    cuDeviceGetAttribute(*mut c_int, c_uint, c_int);
    cuDeviceTotalMem_v2(*mut usize, c_int);
    cuDevicePrimaryCtxRetain(*mut Handle, c_int);
    cuDevicePrimaryCtxRelease_v2(c_int);
    cuCtxSetCurrent(Handle);
    cuMemGetInfo_v2(*mut usize, *mut usize);
    cuMemAlloc_v2(*mut Address, usize);
    cuMemFree_v2(Address);
    cuMemAllocHost_v2(*mut *mut c_void, usize);
    cuMemFreeHost(*mut c_void);
    cuMemcpyHtoDAsync_v2(Address, *const c_void, usize, Handle);
    cuMemcpyDtoHAsync_v2(*mut c_void, Address, usize, Handle);
    cuMemcpyDtoDAsync_v2(Address, Address, usize, Handle);
    cuMemsetD8Async(Address, u8, usize, Handle);
    cuModuleLoadData(*mut Handle, *const c_void);
    cuModuleUnload(Handle);
    cuModuleGetFunction(*mut Handle, Handle, *const c_char);
    cuModuleGetGlobal_v2(*mut Address, *mut usize, Handle, *const c_char);
    cuFuncSetAttribute(Handle, c_uint, c_int);
    cuOccupancyMaxActiveBlocksPerMultiprocessor(*mut c_int, Handle, c_int, usize);
    cuLaunchKernelEx(*const LaunchConfig, Handle, *mut *mut c_void, *mut *mut c_void);
    cuStreamCreate(*mut Handle, c_uint);
    cuStreamDestroy_v2(Handle);
    cuStreamSynchronize(Handle);
    cuStreamIsCapturing(Handle, *mut c_uint);
    cuEventCreate(*mut Handle, c_uint);
    cuEventDestroy_v2(Handle);
    cuEventRecord(Handle, Handle);
    cuEventSynchronize(Handle);
    cuEventElapsedTime(*mut f32, Handle, Handle);
    cuStreamBeginCapture_v2(Handle, c_uint);
    cuStreamEndCapture(Handle, *mut Handle);
    cuGraphInstantiateWithFlags(*mut Handle, Handle, u64);
    cuGraphLaunch(Handle, Handle);
    cuGraphGetNodes(Handle, *mut Handle, *mut usize);
    cuGraphNodeGetType(Handle, *mut c_uint);
    cuGraphMemcpyNodeGetParams(Handle, *mut Copy3d);
    cuGraphDestroy(Handle);
    cuGraphExecDestroy(Handle);
}

/// The CUDA driver, loaded and initialized.
pub struct Driver {
    pub(crate) functions: Functions,
    version: (u32, u32),
    devices: usize,
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver").field("version", &self.version).field("devices", &self.devices).finish_non_exhaustive()
    }
}

impl Driver {
    /// Loads the driver that the system's loader finds.
    ///
    /// # Errors
    /// When there is no driver, or it is too old, or it finds no GPU.
    pub fn open() -> Result<Arc<Self>, Error> {
        Self::open_at(Path::new(LIBRARY))
    }

    /// Loads the driver from a file.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_at(path: &Path) -> Result<Arc<Self>, Error> {
        let library = Loaded::open(path, PACKAGE).map_err(|problem| Error::MissingLibrary {
            library: LIBRARY,
            package: PACKAGE,
            problem,
            advice: "install the driver of the GPU, or run on the CPU",
        })?;
        // The version is asked first: an old driver lacks functions, and its version is the better explanation.
        // SAFETY: the type is that of the documented interface.
        let version: unsafe extern "system" fn(*mut c_int) -> Status =
            unsafe { library.function("cuDriverGetVersion")? };
        let mut number = 0;
        // SAFETY: the function writes one integer.
        let status = unsafe { version(&raw mut number) };
        let version = if status == SUCCESS { version_of(number) } else { (0, 0) };
        if version < OLDEST {
            return Err(Error::DriverTooOld { expected: OLDEST, got: version });
        }
        let functions = Functions::load(&library)?;
        let mut driver = Self { functions, version, devices: 0 };
        // SAFETY: no argument but flags, which must be 0.
        let status = unsafe { (driver.functions.cuInit)(0) };
        if status == NO_DEVICE {
            return Err(Error::NoDevice { ordinal: 0, count: 0 });
        }
        driver.check("cuInit", status)?;
        let mut count = 0;
        // SAFETY: the function writes one integer.
        driver.check("cuDeviceGetCount", unsafe { (driver.functions.cuDeviceGetCount)(&raw mut count) })?;
        driver.devices = usize::try_from(count).unwrap_or(0);
        Ok(Arc::new(driver))
    }

    /// Returns the newest CUDA version that the driver supports, major and minor.
    pub fn version(&self) -> (u32, u32) {
        self.version
    }

    /// Returns the number of GPUs.
    pub fn devices(&self) -> usize {
        self.devices
    }

    /// Converts a status to a result.
    pub(crate) fn check(&self, call: &'static str, status: Status) -> Result<(), Error> {
        if status == SUCCESS {
            return Ok(());
        }
        let text = |function: unsafe extern "system" fn(Status, *mut *const c_char) -> Status| {
            let mut text = std::ptr::null();
            // SAFETY: the function writes one pointer, to a static string or null.
            let found = unsafe { function(status, &raw mut text) };
            if found != SUCCESS || text.is_null() {
                return "unknown error".to_owned();
            }
            // SAFETY: a pointer that is not null points to a static, terminated string.
            unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
        };
        Err(Error::Driver {
            call,
            code: status,
            name: text(self.functions.cuGetErrorName),
            description: text(self.functions.cuGetErrorString),
        })
    }
}

/// Splits a version of the form `1000 major + 10 minor`.
pub(crate) fn version_of(number: c_int) -> (u32, u32) {
    let number = u32::try_from(number).unwrap_or(0);
    (number / 1000, number % 1000 / 10)
}
