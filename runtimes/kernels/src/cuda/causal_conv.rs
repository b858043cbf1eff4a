//! The causal convolution on GPUs.

use super::{
    Call, CudaKernel, Device, Kernel,
    kernel::{Loaded, grid},
    kernels, units,
};
use crate::{AttributeValues, Error};
use densessm_cuda::{Arguments, Function, LaunchShape, Stream, Unit};
use densessm_proto::{
    operators::{CAUSAL_CONV, Schema},
    position,
};
use std::sync::Arc;

const SCHEMA: &Schema = &CAUSAL_CONV;
pub(super) const KERNELS: [CudaKernel; 3] = kernels!(SCHEMA, make);

/// Threads of a block, and channels of a thread.
const THREADS: usize = 128;
const WIDE: usize = 4;
/// Tokens that a thread computes.
const SPAN: usize = 32;

struct CausalConv {
    device: Arc<Device>,
    function: Loaded<Function>,
}

fn make(_: &AttributeValues, device: &Arc<Device>) -> Result<Box<dyn Kernel>, Error> {
    Ok(Box::new(CausalConv { device: Arc::clone(device), function: Loaded::new() }))
}

impl CausalConv {
    fn unit(&self, call: &Call<'_>) -> Result<Unit, Error> {
        Ok(units::causal_conv(call.activation()?, call.size(position!(SCHEMA, dimension "taps"))))
    }
}

impl Kernel for CausalConv {
    fn units(&self, call: &Call<'_>) -> Result<Vec<Unit>, Error> {
        Ok(vec![self.unit(call)?])
    }

    unsafe fn launch(&self, call: &Call<'_>, results: &[u64], stream: &Stream) -> Result<(), Error> {
        let [batch, time, channels, taps] = [
            position!(SCHEMA, dimension "batch"),
            position!(SCHEMA, dimension "time"),
            position!(SCHEMA, dimension "channels"),
            position!(SCHEMA, dimension "taps"),
        ]
        .map(|dimension| call.size(dimension));
        if batch * channels == 0 {
            return Ok(());
        }
        let function =
            self.function.get([taps, 0], || Ok(self.device.module(&self.unit(call)?)?.function("causal_conv")?))?;
        // The first span also writes the state, so that there is one without tokens, too. A window reaches no further
        // back than into the span before.
        let span = if time <= 1 { 1 } else { SPAN.max(taps - 1) };
        let blocks = [channels.div_ceil(WIDE * THREADS), time.div_ceil(span).max(1), batch];
        let shape = LaunchShape::new([grid(blocks[0])?, grid(blocks[1])?, grid(blocks[2])?], THREADS as u32);
        let arguments = [
            call.address(position!(SCHEMA, operand "u")),
            call.address(position!(SCHEMA, operand "weight")),
            call.address(position!(SCHEMA, operand "state")),
            call.address(position!(SCHEMA, operand "bias")),
            call.address(position!(SCHEMA, operand "lengths")),
            results[position!(SCHEMA, result "y")],
            results[position!(SCHEMA, result "present")],
            time as u64,
            channels as u64,
            span as u64,
        ];
        // SAFETY: the arguments are the members of the kernel's structure, all of eight bytes; the caller vouches for
        // what they point to, which has the shapes that the schema says.
        Ok(unsafe { function.launch(stream, &shape, &Arguments::new().words(&arguments)) }?)
    }
}
