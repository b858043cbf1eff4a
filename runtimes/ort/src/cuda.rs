//! Copies within a GPU's memory, through the CUDA driver that ONNX Runtime's provider uses.
//!
//! ONNX Runtime's C interface copies whole tensors only, and each of its copies is a session's run. These copy rows.
//! They are queued on a separate stream; [`Entered::wait`] returns when they are done.

use libloading::Library;
use std::{
    ffi::{CStr, c_char, c_int, c_uint, c_void},
    marker::PhantomData,
    ptr,
};

type Status = c_int;
type Context = *mut c_void;
type Stream = *mut c_void;
/// An address in a GPU's memory, as `CUdeviceptr` is declared on 64-bit systems.
pub(crate) type Address = u64;

/// `CU_STREAM_NON_BLOCKING`: the stream does not wait for the default stream, nor that one for it.
const NON_BLOCKING: c_uint = 1;

#[cfg(windows)]
const LIBRARY: &str = "nvcuda.dll";
#[cfg(not(windows))]
const LIBRARY: &str = "libcuda.so.1";

/// The functions of the driver that are used here, as `cuda.h` declares them.
struct Driver {
    init: unsafe extern "system" fn(c_uint) -> Status,
    device: unsafe extern "system" fn(*mut c_int, c_int) -> Status,
    retain: unsafe extern "system" fn(*mut Context, c_int) -> Status,
    release: unsafe extern "system" fn(c_int) -> Status,
    push: unsafe extern "system" fn(Context) -> Status,
    pop: unsafe extern "system" fn(*mut Context) -> Status,
    create_stream: unsafe extern "system" fn(*mut Stream, c_uint) -> Status,
    destroy_stream: unsafe extern "system" fn(Stream) -> Status,
    synchronize: unsafe extern "system" fn(Stream) -> Status,
    copy: unsafe extern "system" fn(Address, Address, usize, Stream) -> Status,
    to_device: unsafe extern "system" fn(Address, *const c_void, usize, Stream) -> Status,
    to_host: unsafe extern "system" fn(*mut c_void, Address, usize, Stream) -> Status,
    set: unsafe extern "system" fn(Address, c_uint, usize, Stream) -> Status,
    error_text: unsafe extern "system" fn(Status, *mut *const c_char) -> Status,
    /// The functions' code; unloaded after their last use.
    _library: Library,
}

impl Driver {
    fn open() -> Result<Self, String> {
        // SAFETY: loading the driver runs its initializers, which ONNX Runtime's provider has done in this process.
        let library = unsafe { Library::new(LIBRARY) }.map_err(|error| error.to_string())?;
        macro_rules! function {
            ($name:literal) => {
                // SAFETY: the field's type is the function's declaration in `cuda.h`, and the library is kept with it.
                *unsafe { library.get($name) }.map_err(|error| format!("{LIBRARY}: {error}"))?
            };
        }
        Ok(Self {
            init: function!(b"cuInit\0"),
            device: function!(b"cuDeviceGet\0"),
            retain: function!(b"cuDevicePrimaryCtxRetain\0"),
            release: function!(b"cuDevicePrimaryCtxRelease_v2\0"),
            push: function!(b"cuCtxPushCurrent_v2\0"),
            pop: function!(b"cuCtxPopCurrent_v2\0"),
            create_stream: function!(b"cuStreamCreate\0"),
            destroy_stream: function!(b"cuStreamDestroy_v2\0"),
            synchronize: function!(b"cuStreamSynchronize\0"),
            copy: function!(b"cuMemcpyDtoDAsync_v2\0"),
            to_device: function!(b"cuMemcpyHtoDAsync_v2\0"),
            to_host: function!(b"cuMemcpyDtoHAsync_v2\0"),
            set: function!(b"cuMemsetD32Async\0"),
            error_text: function!(b"cuGetErrorString\0"),
            _library: library,
        })
    }

    fn check(&self, what: &str, status: Status) -> Result<(), String> {
        if status == 0 {
            return Ok(());
        }
        let mut text = ptr::null();
        // SAFETY: the driver writes the address of a static text, or null for a number that it does not know.
        let known = unsafe { (self.error_text)(status, &mut text) } == 0 && !text.is_null();
        // SAFETY: as above: it is a static text with a final zero.
        let text = if known { unsafe { CStr::from_ptr(text) }.to_string_lossy() } else { "unknown error".into() };
        Err(format!("CUDA: {what}: error {status}, {text}"))
    }
}

/// A GPU's primary context, in which ONNX Runtime allocates, and a stream for copies.
pub(crate) struct Cuda {
    driver: Driver,
    device: c_int,
    context: Context,
    stream: Stream,
}

// SAFETY: the driver's functions may be called from any thread, with any context and stream.
unsafe impl Send for Cuda {}
// SAFETY: as above.
unsafe impl Sync for Cuda {}

impl Cuda {
    /// Opens the GPU with this index.
    pub(crate) fn open(index: i32) -> Result<Self, String> {
        let driver = Driver::open()?;
        let mut device = 0;
        let mut context = ptr::null_mut();
        // SAFETY: `cuInit` takes flags, which must be 0.
        driver.check("initialising", unsafe { (driver.init)(0) })?;
        // SAFETY: the driver writes one integer.
        driver.check("finding the GPU", unsafe { (driver.device)(&mut device, index) })?;
        // SAFETY: the driver writes one handle, for a device that it has just named.
        driver.check("its context", unsafe { (driver.retain)(&mut context, device) })?;
        let mut cuda = Self { driver, device, context, stream: ptr::null_mut() };
        let mut stream = ptr::null_mut();
        {
            let entered = cuda.enter()?;
            // SAFETY: the driver writes one handle; the context is current.
            let status = unsafe { (entered.cuda.driver.create_stream)(&mut stream, NON_BLOCKING) };
            entered.cuda.driver.check("a stream", status)?;
        }
        cuda.stream = stream;
        Ok(cuda)
    }

    /// Makes the context current until the result is dropped.
    pub(crate) fn enter(&self) -> Result<Entered<'_>, String> {
        // SAFETY: the context was retained when this was made and is released when it is dropped.
        self.driver.check("entering the context", unsafe { (self.driver.push)(self.context) })?;
        Ok(Entered { cuda: self, _thread: PhantomData })
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        if let Ok(entered) = self.enter()
            && !self.stream.is_null()
        {
            // SAFETY: the stream was made by this context, and every copy on it was waited for.
            // After an error the stream is freed with the process.
            let _ = unsafe { (entered.cuda.driver.destroy_stream)(self.stream) };
        }
        // SAFETY: retained once, released once.
        let _ = unsafe { (self.driver.release)(self.device) };
    }
}

/// A GPU whose context is current in this thread.
pub(crate) struct Entered<'a> {
    cuda: &'a Cuda,
    /// The context is current in one thread, so this stays in it.
    _thread: PhantomData<*const ()>,
}

impl Entered<'_> {
    /// Queues a copy within the GPU's memory.
    ///
    /// # Safety
    /// There are `bytes` bytes at both addresses. They do not overlap, and are neither freed nor used otherwise before
    /// [`Entered::wait`] has returned.
    pub(crate) unsafe fn copy(&self, to: Address, from: Address, bytes: usize) -> Result<(), String> {
        let driver = &self.cuda.driver;
        // SAFETY: the caller's obligation.
        driver.check("copying", unsafe { (driver.copy)(to, from, bytes, self.cuda.stream) })
    }

    /// Queues the writing of zeros to this many floats.
    ///
    /// # Safety
    /// As [`Entered::copy`].
    pub(crate) unsafe fn zero(&self, to: Address, floats: usize) -> Result<(), String> {
        let driver = &self.cuda.driver;
        // SAFETY: the caller's obligation. All bits 0 are the float 0.
        driver.check("zeroing", unsafe { (driver.set)(to, 0, floats, self.cuda.stream) })
    }

    /// Copies numbers of the host to the GPU, and waits for it.
    ///
    /// # Safety
    /// There are as many floats at the address, and nothing else uses them until this returns.
    pub(crate) unsafe fn write(&self, to: Address, values: &[f32]) -> Result<(), String> {
        let driver = &self.cuda.driver;
        let from = values.as_ptr().cast();
        // SAFETY: the caller's obligation; the numbers are borrowed until the copy is done.
        let status = unsafe { (driver.to_device)(to, from, size_of_val(values), self.cuda.stream) };
        self.wait().and(driver.check("copying to the GPU", status))
    }

    /// Copies numbers of the GPU to the host, and waits for it.
    ///
    /// # Safety
    /// There are as many floats at the address, and nothing writes to them until this returns.
    pub(crate) unsafe fn read(&self, from: Address, values: &mut [f32]) -> Result<(), String> {
        let driver = &self.cuda.driver;
        let (to, bytes) = (values.as_mut_ptr().cast(), size_of_val(values));
        // SAFETY: the caller's obligation; the numbers are borrowed until the copy is done.
        let status = unsafe { (driver.to_host)(to, from, bytes, self.cuda.stream) };
        self.wait().and(driver.check("copying from the GPU", status))
    }

    /// Waits for everything that was queued.
    pub(crate) fn wait(&self) -> Result<(), String> {
        let driver = &self.cuda.driver;
        // SAFETY: the stream is that of the context, which is current.
        driver.check("waiting", unsafe { (driver.synchronize)(self.cuda.stream) })
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let mut context = ptr::null_mut();
        // SAFETY: pushed once, popped once, in the same thread, since this type is not `Send`.
        let _ = unsafe { (self.cuda.driver.pop)(&mut context) };
    }
}
