//! Streams, in which work is ordered, and events, which mark points of them.

use crate::{
    Context, Error, Plain,
    driver::{Functions, Handle},
};
use std::{ffi::c_void, fmt, sync::Arc};

/// `CU_STREAM_NON_BLOCKING`: no implicit order with the default stream.
const NON_BLOCKING: u32 = 1;

/// A stream: work that is submitted to it runs in order.
pub struct Stream {
    context: Arc<Context>,
    handle: Handle,
    owned: bool,
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").field("owned", &self.owned).finish_non_exhaustive()
    }
}

// SAFETY: the driver's interface is thread-safe, and a stream may be used from any thread.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    /// Makes a stream.
    ///
    /// # Errors
    /// When the driver reports one.
    pub fn new(context: &Arc<Context>) -> Result<Self, Error> {
        let mut handle = std::ptr::null_mut();
        // SAFETY: the function writes one pointer.
        context.call("cuStreamCreate", |f| unsafe { (f.cuStreamCreate)(&raw mut handle, NON_BLOCKING) })?;
        Ok(Self { context: Arc::clone(context), handle, owned: true })
    }

    /// Refers to a stream that something else owns, such as that of ONNX Runtime's provider.
    ///
    /// # Safety
    /// `handle` must be a `CUstream` (or `cudaStream_t`) of this context, or null for its default stream, and must
    /// outlive the value.
    pub unsafe fn borrowed(context: &Arc<Context>, handle: *mut c_void) -> Self {
        Self { context: Arc::clone(context), handle, owned: false }
    }

    /// Returns the context that the stream belongs to.
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// Waits until all submitted work is complete.
    ///
    /// # Errors
    /// When that work or the driver reports one.
    pub fn synchronize(&self) -> Result<(), Error> {
        // SAFETY: the stream lives as long as the value.
        self.context.call("cuStreamSynchronize", |f| unsafe { (f.cuStreamSynchronize)(self.handle) })
    }

    /// Whether what is submitted now is captured into a graph instead of run.
    ///
    /// # Errors
    /// When the driver reports one.
    pub fn is_capturing(&self) -> Result<bool, Error> {
        let mut status = 0;
        // SAFETY: the stream lives as long as the value; the function writes one integer.
        let ask = |f: &Functions| unsafe { (f.cuStreamIsCapturing)(self.handle, &raw mut status) };
        self.context.call("cuStreamIsCapturing", ask)?;
        Ok(status != 0)
    }

    /// Returns the stream as a `CUstream`, which is a `cudaStream_t`, for libraries that submit work to it. It is valid
    /// while the value lives.
    pub fn handle(&self) -> *mut c_void {
        self.handle
    }

    /// Submits a copy within the GPU's memory.
    ///
    /// # Safety
    /// There are `bytes` bytes at both addresses, which do not overlap and stay allocated until the copy is complete.
    ///
    /// # Errors
    /// When the driver reports one.
    pub unsafe fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<(), Error> {
        // SAFETY: the caller's obligation.
        self.context.call("cuMemcpyDtoDAsync", |f| unsafe { (f.cuMemcpyDtoDAsync_v2)(to, from, bytes, self.handle) })
    }

    /// Submits the writing of zero bytes.
    ///
    /// # Safety
    /// There are `bytes` bytes at the address, which stay allocated until the stream has written them.
    ///
    /// # Errors
    /// When the driver reports one.
    pub unsafe fn zero(&self, to: u64, bytes: usize) -> Result<(), Error> {
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the caller's obligation.
        self.context.call("cuMemsetD8Async", |f| unsafe { (f.cuMemsetD8Async)(to, 0, bytes, self.handle) })
    }

    /// Submits a copy from the host.
    ///
    /// # Safety
    /// There is memory for the values at the address; it and the values stay allocated and unchanged until the copy is
    /// complete.
    ///
    /// # Errors
    /// When the driver reports one.
    pub unsafe fn upload<T: Plain>(&self, to: u64, values: &[T]) -> Result<(), Error> {
        let (from, bytes) = (values.as_ptr().cast(), size_of_val(values));
        // SAFETY: the caller's obligation.
        self.context.call("cuMemcpyHtoDAsync", |f| unsafe { (f.cuMemcpyHtoDAsync_v2)(to, from, bytes, self.handle) })
    }

    /// Submits a copy to the host.
    ///
    /// # Safety
    /// There are as many values at the address; they and the slice stay allocated, and the slice is not used, until the
    /// copy is complete.
    ///
    /// # Errors
    /// When the driver reports one.
    pub unsafe fn download<T: Plain>(&self, from: u64, values: &mut [T]) -> Result<(), Error> {
        let (to, bytes) = (values.as_mut_ptr().cast(), size_of_val(values));
        // SAFETY: the caller's obligation; every bit pattern is a value of `T`.
        self.context.call("cuMemcpyDtoHAsync", |f| unsafe { (f.cuMemcpyDtoHAsync_v2)(to, from, bytes, self.handle) })
    }

    pub(crate) fn raw(&self) -> Handle {
        self.handle
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.owned {
            let handle = self.handle;
            // SAFETY: the stream was made by `new` and is destroyed once; the driver completes its work first.
            let _ = self.context.call("cuStreamDestroy", |f| unsafe { (f.cuStreamDestroy_v2)(handle) });
        }
    }
}

/// A point of a stream, for measuring time.
pub struct Event {
    context: Arc<Context>,
    handle: Handle,
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Event").finish_non_exhaustive()
    }
}

// SAFETY: the driver's interface is thread-safe, and an event may be used from any thread.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    /// Makes an event.
    ///
    /// # Errors
    /// When the driver reports one.
    pub fn new(context: &Arc<Context>) -> Result<Self, Error> {
        let mut handle = std::ptr::null_mut();
        // SAFETY: the function writes one pointer.
        context.call("cuEventCreate", |f| unsafe { (f.cuEventCreate)(&raw mut handle, 0) })?;
        Ok(Self { context: Arc::clone(context), handle })
    }

    /// Marks the end of the work that the stream holds now.
    ///
    /// # Errors
    /// When the driver reports one.
    pub fn record(&self, stream: &Stream) -> Result<(), Error> {
        // SAFETY: event and stream live as long as the values.
        self.context.call("cuEventRecord", |f| unsafe { (f.cuEventRecord)(self.handle, stream.raw()) })
    }

    /// Waits for this event and returns the milliseconds since an earlier one.
    ///
    /// # Errors
    /// When one of them was not recorded, or the work between them failed.
    pub fn milliseconds_since(&self, earlier: &Self) -> Result<f32, Error> {
        let mut time = 0.0;
        // SAFETY: the event lives as long as the value.
        self.context.call("cuEventSynchronize", |f| unsafe { (f.cuEventSynchronize)(self.handle) })?;
        // SAFETY: both events live as long as their values; the function writes one number.
        self.context.call("cuEventElapsedTime", |f| unsafe {
            (f.cuEventElapsedTime)(&raw mut time, earlier.handle, self.handle)
        })?;
        Ok(time)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        let handle = self.handle;
        // SAFETY: the event was made by `new` and is destroyed once.
        let _ = self.context.call("cuEventDestroy", |f| unsafe { (f.cuEventDestroy_v2)(handle) });
    }
}
