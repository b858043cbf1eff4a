//! The operands, results and threads of a call on the CPU, as ONNX Runtime provides them.

use crate::tensor::{self, Tensor, checked};
use densessm_kernels::{Error as KernelError, Operand, Pool, Shape};
use ort::{AsPointer, Error, Result, operator::ComputeContext, sys};
use std::{
    ffi::c_void,
    marker::PhantomData,
    num::NonZero,
    panic::{AssertUnwindSafe, catch_unwind},
    ptr, slice,
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

/// A call of a kernel. Its operands and results live as long as it does.
pub(crate) struct Context<'c> {
    pointer: *mut sys::OrtKernelContext,
    of: PhantomData<&'c ComputeContext>,
}

// SAFETY: any thread may read ONNX Runtime's context and use its threads; results are written elsewhere.
unsafe impl Sync for Context<'_> {}

impl<'c> Context<'c> {
    pub(crate) fn new(context: &'c ComputeContext) -> Self {
        Self { pointer: context.ptr().cast_mut(), of: PhantomData }
    }

    /// The number of operands.
    pub(crate) fn inputs(&self) -> Result<usize> {
        // SAFETY: the context is alive.
        unsafe { tensor::inputs(self.pointer) }
    }

    /// An operand, read in place.
    pub(crate) fn input(&self, index: usize) -> Result<Operand<'c>> {
        // SAFETY: the context is alive.
        let Some(Tensor { element, shape, data }) = (unsafe { tensor::input(self.pointer, index) })? else {
            return Ok(Operand::Absent);
        };
        let size = shape.elements();
        use sys::ONNXTensorElementDataType as Type;
        match element {
            // SAFETY: ONNX Runtime keeps that many elements of this type there, unchanged while the kernel runs.
            Type::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT => Ok(Operand::F32(shape, unsafe { elements(data, size) })),
            // SAFETY: as above.
            Type::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32 => Ok(Operand::I32(shape, unsafe { elements(data, size) })),
            _ => Err(Error::new(format!("operand {index}: expected fp32 or int32, got {element:?}"))),
        }
    }

    /// The buffer of a result of fp32.
    pub(crate) fn output(&self, index: usize, shape: Shape, operands: &[Operand<'_>]) -> Result<&'c mut [f32]> {
        // SAFETY: the context is alive.
        let data = unsafe { tensor::output(self.pointer, index, shape) }?;
        let start = data.addr();
        let end = start + shape.elements() * size_of::<f32>();
        // A caller that binds its own memory may bind the same memory twice, but a kernel reads operands after it has
        // begun to write results.
        let overlaps = operands.iter().any(|operand| match operand {
            Operand::Absent => false,
            Operand::F32(_, values) => overlap(start, end, values),
            Operand::I32(_, values) => overlap(start, end, values),
            // Nothing is known of the memory of any other type.
            _ => true,
        });
        if overlaps {
            return Err(Error::new(format!(
                "result {index}: expected memory of its own, got memory of an operand; bind separate memory"
            )));
        }
        if shape.elements() == 0 {
            return Ok(&mut []);
        }
        // SAFETY: ONNX Runtime keeps memory for that many elements there, and nothing else refers to it while the kernel
        // runs: it is not an operand's, and each result is requested once.
        Ok(unsafe { slice::from_raw_parts_mut(data.cast(), shape.elements()) })
    }
}

fn overlap<T>(start: usize, end: usize, values: &[T]) -> bool {
    let range = values.as_ptr_range();
    start < range.end.addr() && range.start.addr() < end
}

/// # Safety
/// `data` points to `size` elements that live and stay unchanged for `'a`; it may be null if there are none.
unsafe fn elements<'a, T>(data: *mut c_void, size: usize) -> &'a [T] {
    if size == 0 {
        return &[];
    }
    // SAFETY: the caller guarantees it.
    unsafe { slice::from_raw_parts(data.cast(), size) }
}

/// A task for ONNX Runtime's threads, and whether any run of it has panicked.
struct Shared<'t> {
    task: &'t (dyn Fn(usize) + Sync),
    panicked: AtomicBool,
}

impl Pool for Context<'_> {
    fn threads(&self) -> usize {
        // ONNX Runtime does not tell how many threads it has.
        static THREADS: OnceLock<usize> = OnceLock::new();
        *THREADS.get_or_init(|| thread::available_parallelism().map_or(1, NonZero::get))
    }

    fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) -> std::result::Result<(), KernelError> {
        if tasks <= 1 {
            (0..tasks).for_each(task);
            return Ok(());
        }
        let shared = Shared { task, panicked: AtomicBool::new(false) };
        // SAFETY: the context and `shared` are alive: the call returns when all tasks have ended.
        let status = unsafe {
            let user = ptr::from_ref(&shared).cast_mut().cast();
            checked((ort::api().KernelContext_ParallelFor)(self.pointer, run_task, tasks, 0, user))
        };
        status.map_err(|error| KernelError::new("threads", error.to_string()))?;
        match shared.panicked.load(Ordering::Relaxed) {
            true => Err(KernelError::new("threads", "a task panicked; please report this")),
            false => Ok(()),
        }
    }
}

/// Runs one task on one of ONNX Runtime's threads.
extern "C" fn run_task(user: *mut c_void, number: usize) {
    // SAFETY: `Pool::run` passes a reference that lives until all tasks have ended.
    let shared = unsafe { &*user.cast_const().cast::<Shared<'_>>() };
    if catch_unwind(AssertUnwindSafe(|| (shared.task)(number))).is_err() {
        shared.panicked.store(true, Ordering::Relaxed);
    }
}
