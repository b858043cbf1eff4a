//! One token of the selective scan on GPUs.

use super::{
    Call, CudaKernel, Device, Kernel,
    kernel::{Loaded, grid},
    kernels, units,
};
use crate::{AttributeValues, Error};
use densessm_cuda::{Arguments, Function, LaunchShape, Stream, Unit};
use densessm_proto::{
    operators::{GroupSchema, SELECTIVE_STEP, Schema},
    position,
};
use std::sync::Arc;

const SCHEMA: &Schema = &SELECTIVE_STEP;
const NEIGHBOURS: usize = position!(SCHEMA, group "neighbours");
const NEIGHBOUR: &GroupSchema = &SCHEMA.groups[NEIGHBOURS];
const PROJECTIONS: usize = position!(SCHEMA, group "projections");
const PROJECTION: &GroupSchema = &SCHEMA.groups[PROJECTIONS];
pub(super) const KERNELS: [CudaKernel; 3] = kernels!(SCHEMA, make);

/// Threads of a block.
const THREADS: usize = 128;

struct SelectiveStep {
    device: Arc<Device>,
    function: Loaded<Function>,
}

fn make(_: &AttributeValues, device: &Arc<Device>) -> Result<Box<dyn Kernel>, Error> {
    Ok(Box::new(SelectiveStep { device: Arc::clone(device), function: Loaded::new() }))
}

/// The states of a channel and the number of neighbours, with which the source is compiled.
fn sizes(call: &Call<'_>) -> [usize; 2] {
    [call.size(position!(SCHEMA, dimension "states")), call.repetitions(NEIGHBOURS)]
}

/// The lanes that share a channel, as the source computes them.
const fn lanes(states: usize) -> usize {
    if states.is_multiple_of(4) && states <= 128 && (states / 4).is_power_of_two() { states / 4 } else { 1 }
}

impl SelectiveStep {
    fn unit(&self, call: &Call<'_>) -> Result<Unit, Error> {
        let [states, neighbours] = sizes(call);
        Ok(units::selective_step(call.activation()?, states, neighbours))
    }
}

impl Kernel for SelectiveStep {
    fn units(&self, call: &Call<'_>) -> Result<Vec<Unit>, Error> {
        Ok(vec![self.unit(call)?])
    }

    unsafe fn launch(&self, call: &Call<'_>, results: &[u64], stream: &Stream) -> Result<(), Error> {
        let [batch, channels] =
            [position!(SCHEMA, dimension "batch"), position!(SCHEMA, dimension "channels")].map(|d| call.size(d));
        if batch * channels == 0 {
            return Ok(());
        }
        let [states, neighbours] = sizes(call);
        let function = self
            .function
            .get([states, neighbours], || Ok(self.device.module(&self.unit(call)?)?.function("selective_step")?))?;
        let blocks = (channels * lanes(states)).div_ceil(THREADS);
        let shape = LaunchShape::new([grid(blocks)?, grid(batch)?, 1], THREADS as u32);
        let operands = [
            position!(SCHEMA, operand "u"),
            position!(SCHEMA, operand "delta"),
            position!(SCHEMA, operand "delta_bias"),
            position!(SCHEMA, operand "a"),
            position!(SCHEMA, operand "b"),
            position!(SCHEMA, operand "state"),
            position!(SCHEMA, operand "c"),
            position!(SCHEMA, operand "skip"),
            position!(SCHEMA, operand "z"),
            position!(SCHEMA, operand "channel_gate"),
            position!(SCHEMA, operand "state_gate"),
        ];
        let mut arguments = operands.map(|operand| call.address(operand)).to_vec();
        let below = position!(NEIGHBOUR, operand "state");
        let projection = position!(PROJECTION, operand "projection");
        // Arrays of the structure have at least one entry.
        arguments.extend((0..neighbours.max(1)).map(|i| call.member_address(NEIGHBOURS, i, below)));
        arguments.extend((0..neighbours.max(1)).map(|i| call.member_address(PROJECTIONS, i, projection)));
        arguments.extend([
            results[position!(SCHEMA, result "y")],
            results[position!(SCHEMA, result "present")],
            channels as u64,
        ]);
        // SAFETY: the arguments are the members of the kernel's structure, all of eight bytes; the caller vouches for
        // what they point to, which has the shapes that the schema says.
        Ok(unsafe { function.launch(stream, &shape, &Arguments::new().words(&arguments)) }?)
    }
}
