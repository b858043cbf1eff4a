//! The whole decode step of Mamba and DenseMamba on GPUs, as one persistent kernel.

use super::{
    Call, CudaKernel, Device, Kernel,
    kernel::constants,
    units::{self, MambaShape},
};
use crate::{AttributeValues, Error, KernelRegistration};
use densessm_cuda::{Arguments, Buffer, Function, LaunchShape, Stream, Unit};
use densessm_proto::{
    Architecture, DType,
    operators::{GroupSchema, MAMBA_STEP, Schema},
    position,
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

const SCHEMA: &Schema = &MAMBA_STEP;
const UPPER: usize = position!(SCHEMA, group "upper");
const UPPER_LAYER: &GroupSchema = &SCHEMA.groups[UPPER];
const GATES: usize = position!(SCHEMA, group "gates");
const LAYER_GATES: &GroupSchema = &SCHEMA.groups[GATES];
pub(super) const KERNELS: [CudaKernel; 2] =
    [KernelRegistration::new(SCHEMA, DType::F16, make), KernelRegistration::new(SCHEMA, DType::BF16, make)];

/// The results of a layer: the convolution's state, then the hidden states. They follow the logits.
const LAYER_RESULTS: usize = 2;

struct MambaStep {
    device: Arc<Device>,
    neighbours: usize,
    epsilon: f32,
    /// What launches need, by the stream's handle and the rows of the batch. Nothing is removed, because captured graphs
    /// refer to the memory.
    prepared: Mutex<HashMap<(usize, usize), Arc<Prepared>>>,
}

fn make(attributes: &AttributeValues, device: &Arc<Device>) -> Result<Box<dyn Kernel>, Error> {
    Ok(Box::new(MambaStep {
        device: Arc::clone(device),
        neighbours: attributes.size(position!(SCHEMA, attribute "neighbours"))?,
        epsilon: attributes.float(position!(SCHEMA, attribute "epsilon"))?,
        prepared: Mutex::default(),
    }))
}

/// A kernel and the memory through which its blocks exchange values, which one launch leaves to the next.
struct Prepared {
    function: Function,
    shape: LaunchShape,
    exchange: Vec<Buffer<u64>>,
    step: Buffer<u32>,
}

impl Prepared {
    fn new(device: &Device, unit: &Unit, stream: &Stream) -> Result<Self, Error> {
        if stream.is_capturing()? {
            return Err(Error::new("stream", "expected a call of these sizes before one that is captured, got none"));
        }
        let module = device.module(unit)?;
        let [blocks, threads, shared, words @ ..] = constants::<7>(&module, stream, "mamba_step_shape")?;
        let number = |size: usize| u32::try_from(size).map_err(|_| Error::new("sizes", "expected sizes below 2^32"));
        let shape = LaunchShape::new([number(blocks)?, 1, 1], number(threads)?).shared(number(shared)?).cooperative();
        let function = module.function("mamba_step")?;
        function.prepare(&shape)?;
        let step = Buffer::new(stream.context(), 1)?;
        step.fill_bytes(stream, 0)?;
        let mut exchange = Vec::with_capacity(words.len());
        for count in words {
            let buffer = Buffer::new(stream.context(), count)?;
            buffer.fill_bytes(stream, 0)?;
            exchange.push(buffer);
        }
        Ok(Self { function, shape, exchange, step })
    }
}

/// Whether a GPU can run `MambaStep` for a model: it has compute capability 9.0 or newer, shared memory and
/// multiprocessors enough, and the kernel is written for the model's sizes.
pub fn runs_mamba_step(device: &Device, architecture: &Architecture) -> bool {
    let Architecture::DenseMamba(m) = architecture else { return false };
    let neighbours = m.dense_block_layers;
    let shape = MambaShape {
        hidden: m.hidden_size,
        inner: m.intermediate_size,
        rank: m.time_step_rank,
        taps: m.conv_kernel,
        gate: m.channel_gate.filter(|_| neighbours > 0).unwrap_or(MambaShape::NO_GATE),
        neighbours,
        layers: m.num_hidden_layers,
        batch: 1,
    };
    let info = device.context().info();
    info.architecture.major >= 9
        && info.cooperative_launch
        && info.shared_bytes >= MambaShape::SHARED_BYTES
        && m.state_size == MambaShape::STATES
        && shape.is_supported()
        && info.multiprocessors as usize >= shape.blocks()
}

impl MambaStep {
    fn shape(&self, call: &Call<'_>) -> Result<MambaShape, Error> {
        let size = |dimension: usize| call.size(dimension);
        let layers = 1 + call.repetitions(UPPER);
        let gated = call.repetitions(GATES);
        let gate = size(position!(SCHEMA, dimension "gate"));
        let inner = size(position!(SCHEMA, dimension "channels"));
        let [states, rank] = [position!(SCHEMA, dimension "states"), position!(SCHEMA, dimension "rank")].map(size);
        let projected = size(position!(SCHEMA, dimension "projected"));
        if projected != rank + 2 * states {
            let problem = format!("expected {} rows, got {projected}", rank + 2 * states);
            return Err(Error::new("first_x_proj", problem));
        }
        let rows = size(position!(SCHEMA, dimension "upper_rows"));
        let middles = if gated > 0 { 2 * gate } else { 0 };
        if rows != 2 * inner + middles {
            let problem = format!("expected {} rows, got {rows}", 2 * inner + middles);
            return Err(Error::new("upper_0_in_proj", problem));
        }
        let expected = if self.neighbours > 0 { layers - 1 } else { 0 };
        if gated != expected {
            return Err(Error::new("gated_layers", format!("expected {expected}, got {gated}")));
        }
        let shape = MambaShape {
            hidden: size(position!(SCHEMA, dimension "hidden")),
            inner,
            rank,
            taps: size(position!(SCHEMA, dimension "taps")),
            gate: if gated > 0 { gate } else { MambaShape::NO_GATE },
            neighbours: self.neighbours,
            layers,
            batch: size(position!(SCHEMA, dimension "batch")),
        };
        if states != MambaShape::STATES || !shape.is_supported() {
            return Err(Error::new("sizes", format!("expected sizes of a published model, got {shape:?}")));
        }
        Ok(shape)
    }

    fn unit(&self, call: &Call<'_>) -> Result<Unit, Error> {
        Ok(units::mamba_step(call.activation()?, &self.shape(call)?))
    }

    fn prepared(&self, call: &Call<'_>, stream: &Stream) -> Result<Arc<Prepared>, Error> {
        let key = (stream.handle().addr(), call.size(position!(SCHEMA, dimension "batch")));
        let mut all = self.prepared.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(prepared) = all.get(&key) {
            return Ok(Arc::clone(prepared));
        }
        let prepared = Arc::new(Prepared::new(&self.device, &self.unit(call)?, stream)?);
        all.insert(key, Arc::clone(&prepared));
        Ok(prepared)
    }

    /// The members of the kernel's structure `Model`.
    fn arguments(&self, call: &Call<'_>, results: &[u64], prepared: &Prepared) -> Result<Vec<u64>, Error> {
        let operands = [
            position!(SCHEMA, operand "tokens"),
            position!(SCHEMA, operand "embedding"),
            position!(SCHEMA, operand "norm"),
            position!(SCHEMA, operand "head"),
        ];
        let mut arguments = operands.map(|operand| call.address(operand)).to_vec();
        arguments.push(results[position!(SCHEMA, result "logits")]);
        arguments.extend(prepared.exchange.iter().map(Buffer::address));
        let vocabulary = call.size(position!(SCHEMA, dimension "vocabulary")) as u64;
        arguments.extend([prepared.step.address(), vocabulary, u64::from(self.epsilon.to_bits())]);
        let mut layer_results = results[1..].chunks_exact(LAYER_RESULTS);
        for layer in 0..=call.repetitions(UPPER) {
            let present = layer_results.next().ok_or_else(|| Error::new("results", "expected two for each layer"))?;
            arguments.extend(layer_arguments(call, layer, present));
        }
        Ok(arguments)
    }
}

/// The members of the kernel's structure `Layer`.
fn layer_arguments(call: &Call<'_>, layer: usize, present: &[u64]) -> [u64; 17] {
    macro_rules! of {
        ($first:literal, $name:literal) => {
            match layer.checked_sub(1) {
                None => call.address(position!(SCHEMA, operand $first)),
                Some(upper) => call.member_address(UPPER, upper, position!(UPPER_LAYER, operand $name)),
            }
        };
    }
    let in_proj = of!("first_in_proj", "in_proj");
    let [inner, hidden] = [position!(SCHEMA, dimension "channels"), position!(SCHEMA, dimension "hidden")]
        .map(|dimension| call.size(dimension) as u64);
    let (gates, channel_gate, state_gate) = match layer.checked_sub(1).filter(|&upper| upper < call.repetitions(GATES))
    {
        None => (0, 0, 0),
        Some(upper) => {
            let of = |position: usize| call.member_address(GATES, upper, position);
            let bytes = call.activation_dtype().size() as u64;
            // The gates' first matrices follow in_proj.
            (
                in_proj + 2 * inner * hidden * bytes,
                of(position!(LAYER_GATES, operand "channel_gate")),
                of(position!(LAYER_GATES, operand "state_gate")),
            )
        }
    };
    [
        of!("first_norm", "norm"),
        in_proj,
        gates,
        of!("first_conv_weight", "conv_weight"),
        of!("first_conv_bias", "conv_bias"),
        of!("first_x_proj", "x_proj"),
        of!("first_dt_proj", "dt_proj"),
        of!("first_dt_bias", "dt_bias"),
        channel_gate,
        state_gate,
        of!("first_a", "a"),
        of!("first_skip", "skip"),
        of!("first_out_proj", "out_proj"),
        of!("first_conv_state", "conv_state"),
        of!("first_state", "state"),
        present[0],
        present[1],
    ]
}

impl Kernel for MambaStep {
    fn units(&self, call: &Call<'_>) -> Result<Vec<Unit>, Error> {
        Ok(vec![self.unit(call)?])
    }

    unsafe fn launch(&self, call: &Call<'_>, results: &[u64], stream: &Stream) -> Result<(), Error> {
        if call.size(position!(SCHEMA, dimension "batch")) == 0 {
            return Ok(());
        }
        let prepared = self.prepared(call, stream)?;
        let arguments = self.arguments(call, results, &prepared)?;
        let arguments = Arguments::new().words(&arguments);
        // SAFETY: the arguments are the members of the kernel's structure, all of eight bytes; the caller vouches for
        // what they point to, which has the shapes that the schema says. The exchange's memory has the lengths that the
        // kernel says, belongs to this stream alone, and was zero before the first launch.
        Ok(unsafe { prepared.function.launch(stream, &prepared.shape, &arguments) }?)
    }
}
