//! Memory of the GPU.

use crate::{
    Context, Error, Stream,
    driver::{Address, Functions, OUT_OF_MEMORY},
};
use std::{
    fmt,
    marker::PhantomData,
    ops::{Deref, DerefMut},
    ptr::NonNull,
    slice,
    sync::Arc,
};

/// A type of plain numbers, which may be copied to the GPU and back byte by byte.
///
/// # Safety
/// Every bit pattern must be a valid value, and there must be no padding.
pub unsafe trait Plain: Copy + Send + Sync + 'static {}

macro_rules! plain {
    ($($number:ty),*) => {
        $(
            // SAFETY: a primitive number has no padding, and every bit pattern is a value.
            unsafe impl Plain for $number {}
        )*
    };
}
plain!(u8, u16, u32, u64, i8, i16, i32, i64, f32, f64);

/// An allocation of `len` numbers in the GPU's memory, freed when it is dropped.
pub struct Buffer<T> {
    context: Arc<Context>,
    address: Address,
    len: usize,
    of: PhantomData<T>,
}

impl<T> fmt::Debug for Buffer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer").field("address", &self.address).field("len", &self.len).finish_non_exhaustive()
    }
}

impl<T: Plain> Buffer<T> {
    /// Allocates numbers of undefined content; an allocation of none has one byte.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] when the GPU's memory does not suffice.
    pub fn new(context: &Arc<Context>, len: usize) -> Result<Self, Error> {
        let bytes = len.checked_mul(size_of::<T>()).ok_or_else(|| {
            Error::argument("len", format!("expected a size in bytes below 2^64, got {len} elements"))
        })?;
        let mut address = 0;
        let mut status = 0;
        // SAFETY: the function writes one address.
        let allocated = context.call("cuMemAlloc", |f| unsafe {
            status = (f.cuMemAlloc_v2)(&raw mut address, bytes.max(1));
            status
        });
        if status == OUT_OF_MEMORY {
            let (free, total) = context.memory().unwrap_or((0, context.info().memory));
            return Err(Error::OutOfMemory { requested: bytes, free, total });
        }
        allocated?;
        Ok(Self { context: Arc::clone(context), address, len, of: PhantomData })
    }

    /// Allocates and copies numbers from the host; returns when the copy is complete.
    ///
    /// # Errors
    /// As [`new`](Self::new) and [`write`](Self::write).
    pub fn from_slice(stream: &Stream, values: &[T]) -> Result<Self, Error> {
        let buffer = Self::new(stream.context(), values.len())?;
        buffer.write(stream, 0, values)?;
        Ok(buffer)
    }

    /// Returns the address on the GPU, as a kernel's argument.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Returns the number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies numbers from the host to the elements from `first` on; returns when the copy is complete.
    ///
    /// # Errors
    /// When they do not fit into the buffer, or the driver reports an error.
    pub fn write(&self, stream: &Stream, first: usize, values: &[T]) -> Result<(), Error> {
        let from = self.range("values", first, values.len())?;
        // SAFETY: the range lies in the allocation; the slice is valid for its length, and the stream is waited for
        // before it can end.
        self.context.call("cuMemcpyHtoDAsync", |f| unsafe {
            (f.cuMemcpyHtoDAsync_v2)(from, values.as_ptr().cast(), size_of_val(values), stream.raw())
        })?;
        stream.synchronize()
    }

    /// Copies the elements from `first` on into a slice of the host, after all earlier work of the stream.
    ///
    /// # Errors
    /// When there are not as many, or the driver reports an error, of earlier kernels too.
    pub fn read(&self, stream: &Stream, first: usize, values: &mut [T]) -> Result<(), Error> {
        let from = self.range("values", first, values.len())?;
        // SAFETY: the range lies in the allocation; every bit pattern is a value of `T`; the stream is waited for
        // before the slice can end.
        self.context.call("cuMemcpyDtoHAsync", |f| unsafe {
            (f.cuMemcpyDtoHAsync_v2)(values.as_mut_ptr().cast(), from, size_of_val(values), stream.raw())
        })?;
        stream.synchronize()
    }

    /// Sets every byte, in the order of the stream.
    ///
    /// # Errors
    /// When the driver reports one.
    pub fn fill_bytes(&self, stream: &Stream, byte: u8) -> Result<(), Error> {
        // SAFETY: the allocation has this many bytes.
        self.context.call("cuMemsetD8Async", |f| unsafe {
            (f.cuMemsetD8Async)(self.address, byte, self.len * size_of::<T>(), stream.raw())
        })
    }

    /// Copies all elements of another buffer of the same length, in the order of the stream.
    ///
    /// # Errors
    /// When the lengths differ, or the driver reports an error.
    pub fn copy_from(&self, stream: &Stream, other: &Self) -> Result<(), Error> {
        if self.len != other.len {
            return Err(Error::argument("other", format!("expected {} elements, got {}", self.len, other.len)));
        }
        // SAFETY: both allocations have this many bytes.
        self.context.call("cuMemcpyDtoDAsync", |f| unsafe {
            (f.cuMemcpyDtoDAsync_v2)(self.address, other.address, self.len * size_of::<T>(), stream.raw())
        })
    }

    fn range(&self, argument: &'static str, first: usize, len: usize) -> Result<Address, Error> {
        match first.checked_add(len) {
            Some(end) if end <= self.len => Ok(self.address + (first * size_of::<T>()) as u64),
            _ => {
                let problem =
                    format!("expected at most {} elements from {first} on, got {len}", self.len.saturating_sub(first));
                Err(Error::argument(argument, problem))
            }
        }
    }
}

/// Numbers in host memory that the GPU copies without the processor's help.
pub struct PinnedBuffer<T> {
    context: Arc<Context>,
    pointer: NonNull<T>,
    len: usize,
}

// SAFETY: the memory is owned by the value and may be used from any thread.
unsafe impl<T: Plain> Send for PinnedBuffer<T> {}
// SAFETY: it is written through exclusive references only.
unsafe impl<T: Plain> Sync for PinnedBuffer<T> {}

impl<T> fmt::Debug for PinnedBuffer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PinnedBuffer").field("len", &self.len).finish_non_exhaustive()
    }
}

impl<T: Plain> PinnedBuffer<T> {
    /// Allocates numbers and sets all their bytes to zero.
    ///
    /// # Errors
    /// When the driver reports one, for lack of memory mostly.
    pub fn new(context: &Arc<Context>, len: usize) -> Result<Self, Error> {
        let bytes = len.checked_mul(size_of::<T>()).ok_or_else(|| {
            Error::argument("len", format!("expected a size in bytes below 2^64, got {len} elements"))
        })?;
        let mut pointer = std::ptr::null_mut();
        // SAFETY: the function writes one pointer.
        let allocate = |f: &Functions| unsafe { (f.cuMemAllocHost_v2)(&raw mut pointer, bytes.max(1)) };
        context.call("cuMemAllocHost", allocate)?;
        let pointer = NonNull::new(pointer.cast::<T>())
            .ok_or_else(|| Error::argument("len", format!("expected memory for {len} elements, got none")))?;
        // SAFETY: the allocation has this many bytes and is aligned to a page.
        unsafe { pointer.as_ptr().cast::<u8>().write_bytes(0, bytes) };
        Ok(Self { context: Arc::clone(context), pointer, len })
    }
}

impl<T: Plain> Deref for PinnedBuffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: the allocation holds `len` numbers, which were initialized when it was made.
        unsafe { slice::from_raw_parts(self.pointer.as_ptr(), self.len) }
    }
}

impl<T: Plain> DerefMut for PinnedBuffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and the value is borrowed exclusively.
        unsafe { slice::from_raw_parts_mut(self.pointer.as_ptr(), self.len) }
    }
}

impl<T> Drop for PinnedBuffer<T> {
    fn drop(&mut self) {
        let pointer = self.pointer.as_ptr().cast();
        // SAFETY: the memory was allocated by `new` and is freed once. An error cannot be reported here.
        let _ = self.context.call("cuMemFreeHost", |f| unsafe { (f.cuMemFreeHost)(pointer) });
    }
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        let address = self.address;
        // SAFETY: the address was allocated by `new` and is freed once; the driver waits for kernels that use it.
        // An error cannot be reported here.
        let _ = self.context.call("cuMemFree", |f| unsafe { (f.cuMemFree_v2)(address) });
    }
}
