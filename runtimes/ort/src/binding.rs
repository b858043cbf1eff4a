//! A session's inputs and outputs, bound to memory in which they stay from call to call.

use crate::memory::Block;
use ort::{
    AsPointer,
    memory::MemoryInfo,
    session::{IoBinding, RunOptions, Session},
    sys,
    value::{PrimitiveTensorElementType, Tensor, TensorElementType},
};
use std::{
    ffi::{CString, c_void},
    fmt::Debug,
    ptr::{self, NonNull},
};

/// The bound inputs and outputs of one session.
///
/// Rows of a [`Block`] are bound by their address: a binding neither owns nor borrows them, because the same memory is
/// the input of one binding and the output of another. That is why [`Binding::run`] has obligations.
pub(crate) struct Binding(IoBinding);

impl Binding {
    /// A binding without any input or output yet. It keeps the session alive.
    pub(crate) fn new(session: &Session) -> ort::Result<Self> {
        Ok(Self(session.create_binding()?))
    }

    /// Binds an input to a tensor of the host, which is kept alive. On the CPU it is read in place at each run; to a
    /// device it is copied now.
    pub(crate) fn input<T: PrimitiveTensorElementType + Debug>(
        &mut self,
        name: &str,
        tensor: &Tensor<T>,
    ) -> ort::Result<()> {
        self.0.bind_input(name, tensor)
    }

    /// Binds an output to a whole tensor, which is kept alive.
    pub(crate) fn output(&mut self, name: &str, tensor: &mut Tensor<f32>) -> ort::Result<()> {
        self.0.bind_output(name, tensor)
    }

    /// Binds an input to the first rows of a block on the session's device.
    pub(crate) fn input_rows(&mut self, name: &str, block: &Block, rows: usize) -> ort::Result<()> {
        let (name, view) = (c_name(name)?, View::new(block, rows)?);
        // SAFETY: binding, name and view are alive; ONNX Runtime keeps its own reference to the view's description.
        unsafe {
            ort::Error::result_from_status((ort::api().BindInput)(self.0.ptr_mut(), name.as_ptr(), view.0.as_ptr()))
        }
    }

    /// Binds an output to the first rows of a block.
    pub(crate) fn output_rows(&mut self, name: &str, block: &Block, rows: usize) -> ort::Result<()> {
        let (name, view) = (c_name(name)?, View::new(block, rows)?);
        // SAFETY: as in `input_rows`.
        unsafe {
            ort::Error::result_from_status((ort::api().BindOutput)(self.0.ptr_mut(), name.as_ptr(), view.0.as_ptr()))
        }
    }

    /// Binds an input to numbers in a GPU's memory.
    ///
    /// # Safety
    /// There are as many numbers of this type at the address as the shape says, in the memory that `info` describes. They
    /// live as long as the binding.
    pub(crate) unsafe fn input_at<T: PrimitiveTensorElementType>(
        &mut self,
        name: &str,
        address: u64,
        shape: &[usize],
        info: &MemoryInfo<'_>,
    ) -> ort::Result<()> {
        let pointer = ptr::without_provenance_mut(address as usize);
        let (name, view) =
            (c_name(name)?, View::at(info, pointer, shape, size_of::<T>(), T::into_tensor_element_type())?);
        // SAFETY: as in `input_rows`; the caller keeps the numbers.
        unsafe {
            ort::Error::result_from_status((ort::api().BindInput)(self.0.ptr_mut(), name.as_ptr(), view.0.as_ptr()))
        }
    }

    /// Runs the session and waits for it. `Session::run_binding` would also wrap each output in a value of its own, at
    /// every run anew.
    ///
    /// # Safety
    /// - The binding was made for this session.
    /// - Every block bound by [`Binding::input_rows`] and [`Binding::output_rows`] is alive.
    /// - Until this returns, nothing else writes to what is bound to an input, or uses what is bound to an output.
    pub(crate) unsafe fn run(&mut self, session: &mut Session) -> ort::Result<()> {
        // SAFETY: the caller's obligation.
        unsafe { self.submit(session, None) }?;
        self.0.synchronize_outputs()
    }

    /// Runs the session without waiting for what it submits to a GPU.
    ///
    /// # Safety
    /// As for [`Binding::run`], until the session's stream has completed the work.
    pub(crate) unsafe fn submit(&mut self, session: &mut Session, options: Option<&RunOptions>) -> ort::Result<()> {
        let options = options.map_or(ptr::null(), AsPointer::ptr);
        // SAFETY: all pointers are those of living objects and the options may be null. The session is borrowed mutably:
        // nothing else runs it now. The rest is the caller's obligation.
        let status = unsafe { (ort::api().RunWithBinding)(session.ptr_mut(), options, self.0.ptr()) };
        // SAFETY: the status was just returned, and is handed over here and nowhere else.
        unsafe { ort::Error::result_from_status(status) }
    }
}

fn c_name(name: &str) -> ort::Result<CString> {
    CString::new(name).map_err(|_| ort::Error::new("expected a name without a zero byte"))
}

/// ONNX Runtime's description of the first rows of a block: a tensor that does not own its memory.
struct View(NonNull<sys::OrtValue>);

impl View {
    fn new(block: &Block, rows: usize) -> ort::Result<Self> {
        if rows == 0 || rows > block.capacity() {
            let problem = format!("expected 1 to {} rows, got {rows}", block.capacity());
            return Err(ort::Error::new(problem));
        }
        let shape: Vec<usize> = [rows].iter().chain(block.shape()).copied().collect();
        let (info, pointer) = block.place();
        Self::at(info, pointer, &shape, size_of::<f32>(), TensorElementType::Float32)
    }

    /// Numbers of some type from an address on.
    fn at(
        info: &MemoryInfo<'_>,
        pointer: *mut c_void,
        shape: &[usize],
        size: usize,
        element: TensorElementType,
    ) -> ort::Result<Self> {
        let sizes: Vec<i64> = shape.iter().map(|&size| size as i64).collect();
        let bytes = shape.iter().product::<usize>() * size;
        let mut value = ptr::null_mut();
        // SAFETY: only the address is taken; a value is written or an error returned.
        unsafe {
            ort::Error::result_from_status((ort::api().CreateTensorWithDataAsOrtValue)(
                info.ptr(),
                pointer,
                bytes,
                sizes.as_ptr(),
                sizes.len(),
                element.into(),
                &mut value,
            ))
        }?;
        NonNull::new(value).map(Self).ok_or_else(|| ort::Error::new("ONNX Runtime made no tensor of the rows"))
    }
}

impl Drop for View {
    fn drop(&mut self) {
        // SAFETY: the value was made by `View::new` and is released once.
        unsafe { (ort::api().ReleaseValue)(self.0.as_ptr()) }
    }
}
