//! What a CUDA kernel is called with, and what it does with it.

use crate::{BoundCall, Described, Error, PreparedKernel, Shape, cuda::Activation};
use densessm_cuda::{Module, Stream, Unit};
use densessm_proto::DType;
use std::sync::{Arc, Mutex, PoisonError};

/// The kernels load and store up to 16 bytes at once.
const ALIGNMENT: u64 = 16;

/// An operand of the CUDA kernels: row-major elements in the GPU's memory.
#[derive(Clone, Copy, Debug, Default)]
pub struct DeviceOperand {
    content: Option<(DType, Shape)>,
    address: u64,
}

impl DeviceOperand {
    /// An operand that was left out.
    pub const ABSENT: Self = Self { content: None, address: 0 };

    /// Elements at an address of the GPU.
    pub const fn new(dtype: DType, shape: Shape, address: u64) -> Self {
        Self { content: Some((dtype, shape)), address }
    }

    /// The address on the GPU; 0 if the operand was left out.
    pub const fn address(&self) -> u64 {
        self.address
    }

    /// Element type and shape, if the operand is present.
    pub const fn content(&self) -> Option<(DType, Shape)> {
        self.content
    }
}

impl Described for DeviceOperand {
    #[inline]
    fn describe(&self) -> Option<(DType, Shape)> {
        self.content
    }

    /// The memory behind an address has no length of its own.
    #[inline]
    fn is_complete(&self) -> bool {
        true
    }
}

/// A call of a CUDA kernel whose operands fit the schema.
pub type Call<'c> = BoundCall<'c, DeviceOperand>;

impl Call<'_> {
    /// The address of an operand; 0 if it was left out.
    pub(crate) fn address(&self, position: usize) -> u64 {
        self.operand(position).unwrap_or_default().address
    }

    /// The address of an operand of one repetition of a group.
    pub(crate) fn member_address(&self, group: usize, repetition: usize, position: usize) -> u64 {
        self.member(group, repetition, position).unwrap_or_default().address
    }

    /// The element type of the activations.
    pub(crate) fn activation(&self) -> Result<Activation, Error> {
        let dtype = self.activation_dtype();
        Activation::of(dtype)
            .ok_or_else(|| Error::new("activations", format!("expected fp32, fp16 or bf16, got {dtype}")))
    }
}

/// A kernel for NVIDIA GPUs, made for one node of a graph.
pub trait Kernel: Send + Sync {
    /// The compilation units that calls of these sizes need. Only the sizes of operands count here, not their addresses.
    ///
    /// # Errors
    /// When there is no kernel for these sizes.
    fn units(&self, call: &Call<'_>) -> Result<Vec<Unit>, Error>;

    /// Submits the computation of a call's results to a stream.
    ///
    /// # Safety
    /// As [`PreparedKernel::launch`], whose checks have been made.
    ///
    /// # Errors
    /// When there is no kernel for these sizes, or the driver refuses something.
    unsafe fn launch(&self, call: &Call<'_>, results: &[u64], stream: &Stream) -> Result<(), Error>;
}

impl PreparedKernel<dyn Kernel> {
    /// The compilation units that calls of these sizes need, as far as sizes are known: where an axis may have any size,
    /// 1 stands for it.
    ///
    /// # Errors
    /// When the operands do not fit the schema, or there is no kernel for these sizes.
    pub fn units(&self, operands: &[DeviceOperand]) -> Result<Vec<Unit>, Error> {
        self.kernel().units(&self.signature().bind(operands)?)
    }

    /// Submits the computation of a call's results to a stream, into memory at the addresses `results`.
    ///
    /// # Safety
    /// Every operand's address and every result's is that of as many elements in the memory of the stream's GPU as the
    /// shapes say. They stay allocated, and nothing else writes to them, until the stream has completed the work. No
    /// result overlaps an operand, or another result.
    ///
    /// # Errors
    /// When there are not as many results as the schema says, an address is not a multiple of 16, there is no kernel for
    /// these sizes, or the driver refuses something.
    pub unsafe fn launch(&self, call: &Call<'_>, results: &[u64], stream: &Stream) -> Result<(), Error> {
        if results.len() != call.results() {
            let (expected, got) = (call.results(), results.len());
            return Err(Error::new("results", format!("expected {expected} addresses, got {got}")));
        }
        let addresses = call.operands().iter().map(|operand| operand.address).chain(results.iter().copied());
        if let Some(address) = addresses.into_iter().find(|address| !address.is_multiple_of(ALIGNMENT)) {
            let problem = format!("expected memory aligned to {ALIGNMENT} bytes, got the address {address:#x}");
            return Err(Error::new("operands", problem));
        }
        // SAFETY: the caller's obligation.
        unsafe { self.kernel().launch(call, results, stream) }
    }
}

/// What a kernel has loaded for the sizes of its latest call.
pub(super) struct Loaded<L>(Mutex<Option<([usize; 2], Arc<L>)>>);

impl<L> Loaded<L> {
    pub(super) const fn new() -> Self {
        Self(Mutex::new(None))
    }

    /// Returns what was loaded for these sizes, or loads it.
    pub(super) fn get(&self, sizes: [usize; 2], load: impl FnOnce() -> Result<L, Error>) -> Result<Arc<L>, Error> {
        let mut loaded = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*loaded {
            Some((of, loaded)) if *of == sizes => Ok(Arc::clone(loaded)),
            _ => {
                let new = Arc::new(load()?);
                *loaded = Some((sizes, Arc::clone(&new)));
                Ok(new)
            }
        }
    }
}

/// The constants of a module that say how to launch it.
pub(super) fn constants<const N: usize>(module: &Module, stream: &Stream, name: &str) -> Result<[usize; N], Error> {
    Ok(module.constants::<N>(stream, name)?.map(|constant| constant as usize))
}

/// A size as a launch takes it.
pub(super) fn grid(size: usize) -> Result<u32, Error> {
    u32::try_from(size).map_err(|_| Error::new("sizes", format!("expected fewer than 2^32 blocks, got {size}")))
}
