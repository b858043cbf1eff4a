//! A GPU and its primary context, which ONNX Runtime uses too.

use crate::{
    Error,
    driver::{Driver, Functions, Handle, Status},
    launch::Module,
};
use std::{
    ffi::{CStr, c_int, c_uint},
    fmt,
    sync::Arc,
};

/// The numbers of `CUdevice_attribute`.
const MULTIPROCESSORS: c_uint = 16;
const L2_BYTES: c_uint = 38;
const MAJOR: c_uint = 75;
const MINOR: c_uint = 76;
const COOPERATIVE_LAUNCH: c_uint = 95;
const SHARED_BYTES: c_uint = 97;

/// A GPU architecture for which machine code is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Architecture {
    /// The compute capability's major number.
    pub major: u32,
    /// The compute capability's minor number.
    pub minor: u32,
}

impl Architecture {
    /// The architecture with this compute capability.
    pub const fn new(major: u32, minor: u32) -> Self {
        Self { major, minor }
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sm_{}{}", self.major, self.minor)
    }
}

/// What a GPU is and has.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceInfo {
    /// The GPU's name.
    pub name: String,
    /// Its architecture.
    pub architecture: Architecture,
    /// The number of its multiprocessors.
    pub multiprocessors: u32,
    /// The bytes of its memory.
    pub memory: usize,
    /// The bytes of its level 2 cache.
    pub l2_bytes: usize,
    /// The most bytes of shared memory that a block may have.
    pub shared_bytes: usize,
    /// Whether all blocks of a launch can be resident at once by contract.
    pub cooperative_launch: bool,
}

/// The primary context of a GPU. It is retained while the value lives.
pub struct Context {
    pub(crate) driver: Arc<Driver>,
    handle: Handle,
    device: c_int,
    info: DeviceInfo,
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("info", &self.info).finish_non_exhaustive()
    }
}

// SAFETY: the driver's interface is thread-safe; a context may be current to any number of threads.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    /// Retains the primary context of the GPU with this number.
    ///
    /// # Errors
    /// When there is no such GPU, or the context cannot be made.
    pub fn primary(driver: &Arc<Driver>, ordinal: usize) -> Result<Arc<Self>, Error> {
        let missing = Error::NoDevice { ordinal, count: driver.devices() };
        let number = c_int::try_from(ordinal).ok().filter(|_| ordinal < driver.devices()).ok_or(missing)?;
        let functions = &driver.functions;
        let mut device = 0;
        // SAFETY: the function writes one integer.
        driver.check("cuDeviceGet", unsafe { (functions.cuDeviceGet)(&raw mut device, number) })?;
        let info = describe(driver, device)?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: the device is valid; the function writes one pointer.
        let status = unsafe { (functions.cuDevicePrimaryCtxRetain)(&raw mut handle, device) };
        driver.check("cuDevicePrimaryCtxRetain", status)?;
        Ok(Arc::new(Self { driver: Arc::clone(driver), handle, device, info }))
    }

    /// Returns what the GPU is and has.
    pub fn info(&self) -> &DeviceInfo {
        &self.info
    }

    /// Returns the free and the total bytes of the GPU's memory.
    ///
    /// # Errors
    /// When the driver reports one.
    pub fn memory(&self) -> Result<(usize, usize), Error> {
        let (mut free, mut total) = (0, 0);
        // SAFETY: the function writes two integers.
        self.call("cuMemGetInfo", |f| unsafe { (f.cuMemGetInfo_v2)(&raw mut free, &raw mut total) })?;
        Ok((free, total))
    }

    /// Loads machine code.
    ///
    /// # Errors
    /// When it is for another architecture, or the driver is older than the compiler that made it.
    pub fn load(self: &Arc<Self>, image: &[u8]) -> Result<Arc<Module>, Error> {
        Module::load(self, image)
    }

    /// Makes the context current to this thread and calls the driver.
    pub(crate) fn call(&self, name: &'static str, call: impl FnOnce(&Functions) -> Status) -> Result<(), Error> {
        self.make_current()?;
        self.driver.check(name, call(&self.driver.functions))
    }

    pub(crate) fn make_current(&self) -> Result<(), Error> {
        // SAFETY: the handle is that of a retained context.
        let status = unsafe { (self.driver.functions.cuCtxSetCurrent)(self.handle) };
        self.driver.check("cuCtxSetCurrent", status)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: this releases what `primary` retained, once. An error cannot be reported here and harms nothing.
        unsafe { (self.driver.functions.cuDevicePrimaryCtxRelease_v2)(self.device) };
    }
}

/// Asks for a device's attributes.
pub(crate) fn describe(driver: &Driver, device: c_int) -> Result<DeviceInfo, Error> {
    let functions = &driver.functions;
    let attribute = |number: c_uint| {
        let mut value = 0;
        // SAFETY: the device is valid; the function writes one integer.
        let status = unsafe { (functions.cuDeviceGetAttribute)(&raw mut value, number, device) };
        driver.check("cuDeviceGetAttribute", status)?;
        Ok::<_, Error>(u32::try_from(value).unwrap_or(0))
    };
    let mut name = [0; 256];
    // SAFETY: the buffer has the length that is passed; the function writes a terminated string into it.
    let status = unsafe { (functions.cuDeviceGetName)(name.as_mut_ptr(), name.len() as c_int - 1, device) };
    driver.check("cuDeviceGetName", status)?;
    let mut memory = 0;
    // SAFETY: the function writes one integer.
    driver.check("cuDeviceTotalMem", unsafe { (functions.cuDeviceTotalMem_v2)(&raw mut memory, device) })?;
    // SAFETY: the last byte was never written, so the string is terminated within the buffer.
    let name = unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned();
    Ok(DeviceInfo {
        name,
        architecture: Architecture::new(attribute(MAJOR)?, attribute(MINOR)?),
        multiprocessors: attribute(MULTIPROCESSORS)?,
        memory,
        l2_bytes: attribute(L2_BYTES)? as usize,
        shared_bytes: attribute(SHARED_BYTES)? as usize,
        cooperative_launch: attribute(COOPERATIVE_LAUNCH)? != 0,
    })
}
