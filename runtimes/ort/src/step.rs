//! A step of a batch: the bindings of its inputs and outputs, and the CUDA graphs that were captured of it.
//!
//! The states alternate between two sets of blocks, so there are two bindings, one for each direction. On a GPU, what
//! changes from step to step (tokens and positions) is copied to fixed places in the GPU's memory before each step.
//! A step can then be captured: it submits the same work to the same addresses every time. Each direction is captured
//! after two ordinary runs, in which ONNX Runtime and the kernels allocate what they need. A captured step is launched
//! without ONNX Runtime.

use crate::{
    binding::Binding,
    error::failed,
    gpu::{self, Gpu},
    memory::Block,
    session::{Lent, Opened},
    states::OrtStates,
};
use densessm_cuda::{Buffer, Graph, GraphExecutable, HostWork, PinnedBuffer};
use densessm_proto::states::{INPUT_IDS, LOGITS, PAST_LENGTH};
use densessm_session::Error;
use ort::{
    memory::{Allocator, MemoryInfo},
    session::RunOptions,
    value::Tensor,
};
use std::sync::{Arc, Mutex, PoisonError};

static CAPTURE_PROBLEM: Mutex<Option<String>> = Mutex::new(None);

/// Returns why steps of this process that should have been captured into CUDA graphs could not be, and forgets it; none
/// if all could since the last call. Such steps are submitted node by node, which computes the same and takes longer.
pub fn take_capture_problem() -> Option<String> {
    CAPTURE_PROBLEM.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// Notes why steps cannot be captured.
pub(crate) fn not_captured(problem: String) {
    *CAPTURE_PROBLEM.lock().unwrap_or_else(PoisonError::into_inner) = Some(problem);
}

/// Ordinary runs of a direction before it is captured.
const RUNS_BEFORE_CAPTURE: u32 = 2;

/// The bindings of a step at one size of the batch, one for each direction between the two sets of states.
pub(crate) struct Step {
    pub(crate) batch: usize,
    /// Where the step's logits go. It belongs to one model, and so identifies it: states may be handed to another model
    /// of the same bundle.
    pub(crate) logits: Arc<Block>,
    directions: [Direction; 2],
    inputs: Inputs,
    /// The bindings keep their session alive, and that uses these.
    _lent: Arc<Lent>,
}

/// One of the two directions. Its graph refers to the memory that its binding names.
struct Direction {
    capture: Capture,
    binding: Binding,
}

/// Whether a direction is captured.
enum Capture {
    /// It never is.
    Never,
    /// It will be, after this number of further runs.
    After(u32),
    Captured(GraphExecutable),
}

/// Where a step reads its integers.
enum Inputs {
    /// In the processor's memory; on a device that has its own, they are bound anew for each step.
    Host { tokens: Tensor<i64>, past_length: Tensor<i64>, rebind: bool },
    /// At fixed places of the GPU's memory.
    Cuda { gpu: Arc<Gpu>, tokens: Integers, past_length: Integers },
}

/// Integers in the GPU's memory, and on their way there.
struct Integers {
    host: PinnedBuffer<i64>,
    device: Buffer<i64>,
}

impl Integers {
    fn new(gpu: &Gpu, len: usize) -> Result<Self, densessm_cuda::Error> {
        let context = gpu.stream().context();
        Ok(Self { host: PinnedBuffer::new(context, len)?, device: Buffer::new(context, len)? })
    }

    /// Submits a copy of the values to the GPU.
    fn write(&mut self, gpu: &Gpu, values: &[i64]) -> Result<(), densessm_cuda::Error> {
        self.host.copy_from_slice(values);
        // SAFETY: both have the same length and live as long as this; the values are written again after the step has
        // been waited for.
        unsafe { gpu.stream().upload(self.device.address(), &self.host) }
    }
}

impl Step {
    /// Binds a step of the states' present batch.
    pub(crate) fn bind(
        opened: &Opened,
        states: &OrtStates,
        counts: bool,
        logits: &Arc<Block>,
        lent: &Arc<Lent>,
        cuda_graph_batch: usize,
    ) -> Result<Self, Error> {
        let batch = states.batch();
        let binding = failed("binding a step");
        let inputs = match lent.shared_stream() {
            Some(gpu) => {
                let integers = || Integers::new(gpu, batch).map_err(gpu::failed("allocating a step's inputs"));
                Inputs::Cuda { gpu: Arc::clone(gpu), tokens: integers()?, past_length: integers()? }
            }
            None => {
                let tokens = Tensor::new(&Allocator::default(), [batch, 1]).map_err(&binding)?;
                let past_length = Tensor::new(&Allocator::default(), [batch]).map_err(&binding)?;
                Inputs::Host { tokens, past_length, rebind: lent.gpu().is_some() }
            }
        };
        let captured = opened.capturable && batch <= cuda_graph_batch;
        let direction = |from: usize| {
            let mut binding = Binding::new(&opened.session)?;
            inputs.bind(&mut binding, counts, logits.place().0)?;
            states.bind(&mut binding, from)?;
            binding.output_rows(LOGITS, logits, batch)?;
            let capture = if captured { Capture::After(RUNS_BEFORE_CAPTURE) } else { Capture::Never };
            Ok::<_, ort::Error>(Direction { capture, binding })
        };
        let directions = [direction(0).map_err(&binding)?, direction(1).map_err(&binding)?];
        Ok(Self { batch, logits: Arc::clone(logits), directions, inputs, _lent: Arc::clone(lent) })
    }

    /// Runs the step from one set of states to the other. On a GPU whose stream the session shares, the work is complete
    /// when the stream is; otherwise when this returns.
    ///
    /// # Safety
    /// The step was bound for this session and these states, whose blocks are alive. Until the work is complete, nothing
    /// else uses them or the logits.
    pub(crate) unsafe fn run(
        &mut self,
        opened: &mut Opened,
        from: usize,
        tokens: &[i64],
        past: Option<&[i64]>,
        options: &RunOptions,
    ) -> Result<(), Error> {
        let problem = failed("the recurrent graph");
        let direction = &mut self.directions[from];
        let gpu = match &mut self.inputs {
            Inputs::Host { tokens: to, past_length, rebind } => {
                let mut feed = || -> ort::Result<()> {
                    to.try_extract_tensor_mut()?.1.copy_from_slice(tokens);
                    if let Some(past) = past {
                        past_length.try_extract_tensor_mut()?.1.copy_from_slice(past);
                    }
                    // What is bound on the CPU is read in place; for a device it is copied when it is bound.
                    if *rebind {
                        direction.binding.input(INPUT_IDS, to)?;
                        if past.is_some() {
                            direction.binding.input(PAST_LENGTH, past_length)?;
                        }
                    }
                    Ok(())
                };
                feed().map_err(&problem)?;
                // SAFETY: the caller's obligation.
                return unsafe { direction.binding.run(&mut opened.session) }.map_err(&problem);
            }
            Inputs::Cuda { gpu, tokens: to, past_length } => {
                to.write(gpu, tokens)
                    .and_then(|()| past.map_or(Ok(()), |past| past_length.write(gpu, past)))
                    .map_err(gpu::failed("copying tokens"))?;
                &**gpu
            }
        };
        // SAFETY: the caller's obligation.
        unsafe { direction.run(opened, gpu, options) }
    }
}

impl Inputs {
    fn bind(&self, binding: &mut Binding, counts: bool, info: &MemoryInfo<'_>) -> ort::Result<()> {
        match self {
            Self::Host { tokens, past_length, .. } => {
                binding.input(INPUT_IDS, tokens)?;
                if counts {
                    binding.input(PAST_LENGTH, past_length)?;
                }
            }
            Self::Cuda { tokens, past_length, .. } => {
                let (tokens, past) = (&tokens.device, &past_length.device);
                // SAFETY: the buffers have these lengths, and live in the same step as the binding, after which they are
                // dropped.
                unsafe {
                    binding.input_at::<i64>(INPUT_IDS, tokens.address(), &[tokens.len(), 1], info)?;
                    if counts {
                        binding.input_at::<i64>(PAST_LENGTH, past.address(), &[past.len()], info)?;
                    }
                }
            }
        }
        Ok(())
    }
}

impl Direction {
    /// # Safety
    /// As for [`Step::run`].
    unsafe fn run(&mut self, opened: &mut Opened, gpu: &Gpu, options: &RunOptions) -> Result<(), Error> {
        let mut capture_failed = false;
        if matches!(self.capture, Capture::After(0)) {
            // SAFETY: the caller's obligation.
            self.capture = match unsafe { self.capture(opened, gpu, options) } {
                Ok(graph) => Capture::Captured(graph),
                // The same work can always be submitted node by node.
                Err(CaptureError(problem)) => {
                    not_captured(problem);
                    capture_failed = true;
                    Capture::Never
                }
            };
        }
        match &mut self.capture {
            // SAFETY: the graph refers to the states, the logits and the inputs that are bound, which are alive, and to
            // memory of the session, which the binding keeps alive.
            Capture::Captured(graph) => return unsafe { graph.launch(gpu.stream()) }.map_err(gpu::failed("a step")),
            Capture::After(runs) => *runs -= 1,
            Capture::Never => {}
        }
        // SAFETY: the caller's obligation.
        let mut submit = || unsafe { self.binding.submit(&mut opened.session, Some(options)) };
        let submitted = match submit() {
            // The first kernel after a capture that failed may still report that failure, which is thereby forgotten. A
            // direction writes nothing that it reads: it can be submitted twice.
            Err(_) if capture_failed => submit(),
            submitted => submitted,
        };
        submitted.map_err(failed("the recurrent graph"))
    }

    /// Captures the step. What is captured does not run, so a capture that fails has changed nothing.
    ///
    /// Some kernels of ONNX Runtime's CUDA provider copy their operands' sizes from host memory at each run, and have
    /// the stream call a function that frees that memory: those of `Split` with unequal parts (other than three of the
    /// last axis), of a batched `MatMul` whose matrices are not evenly spaced, of `GatherND`, and of loops. A graph of
    /// them would read freed memory and free it again at each launch, so a graph with any work of the host is refused.
    /// All other operators of recurrent graphs (elementwise ones, reductions, `Gather`, `Slice`, `Concat`, `Transpose`,
    /// `Reshape`, `Gemm`, `MatMul` with a matrix, `Split` with equal parts) pass what they need as arguments of their
    /// kernels.
    ///
    /// # Safety
    /// As for [`Step::run`].
    unsafe fn capture(
        &mut self,
        opened: &mut Opened,
        gpu: &Gpu,
        options: &RunOptions,
    ) -> Result<GraphExecutable, CaptureError> {
        let graph = Graph::capture(gpu.stream(), || {
            // SAFETY: the caller's obligation; the addresses are those of every later launch.
            unsafe { self.binding.submit(&mut opened.session, Some(options)) }
                .map_err(|error| CaptureError(error.to_string()))
        })?;
        let work = graph.host_work()?;
        if work != HostWork::default() {
            return Err(CaptureError(format!(
                "expected a step without work of the host, got {} copies of its memory and {} calls of its functions; \
                 export the checkpoint again, with --lowering function",
                work.copies, work.callbacks
            )));
        }
        Ok(graph.instantiate()?)
    }
}

/// Why a step cannot be captured.
struct CaptureError(String);

impl From<densessm_cuda::Error> for CaptureError {
    fn from(error: densessm_cuda::Error) -> Self {
        Self(error.to_string())
    }
}
