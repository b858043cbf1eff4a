//! One token of retention on GPUs.
//!
//! The rows of a head's state are divided among blocks, which add up what they contribute in scratch memory; the last
//! block of a head to arrive finishes it.

use super::{
    Call, CudaKernel, Device, Kernel,
    kernel::{Loaded, grid},
    kernels, units,
};
use crate::{AttributeValues, Error};
use densessm_cuda::{Arguments, Function, LaunchShape, Stream, Unit};
use densessm_proto::{
    operators::{RETENTION_STEP, Schema},
    position,
};
use std::sync::Arc;

const SCHEMA: &Schema = &RETENTION_STEP;
pub(super) const KERNELS: [CudaKernel; 3] = kernels!(SCHEMA, make);

/// Threads of a block, and the columns of the state that it has.
const THREADS: u32 = 256;
const COLUMNS: usize = 128;
/// The fewest rows of a block: each of its warps has one at least.
const FEWEST_ROWS: usize = 8;
/// Blocks of a multiprocessor from which on further ones bring nothing.
const BLOCKS: usize = 16;

struct RetentionStep {
    device: Arc<Device>,
    epsilon: f32,
    function: Loaded<Function>,
}

fn make(attributes: &AttributeValues, device: &Arc<Device>) -> Result<Box<dyn Kernel>, Error> {
    let epsilon = attributes.float(position!(SCHEMA, attribute "epsilon"))?;
    Ok(Box::new(RetentionStep { device: Arc::clone(device), epsilon, function: Loaded::new() }))
}

/// The keys and values of a head, with which the source is compiled.
fn sizes(call: &Call<'_>) -> [usize; 2] {
    [2 * call.size(position!(SCHEMA, dimension "pairs")), call.size(position!(SCHEMA, dimension "head_value"))]
}

/// Into how many parts to divide the rows of a state, where `blocks` blocks compute one part of all heads.
fn splits(multiprocessors: usize, blocks: usize, keys: usize) -> usize {
    let splits = if 4 * blocks >= BLOCKS * multiprocessors { 4 } else { 8 };
    splits.min(keys / FEWEST_ROWS).max(1)
}

impl RetentionStep {
    fn unit(&self, call: &Call<'_>) -> Result<Unit, Error> {
        let [keys, values] = sizes(call);
        Ok(units::retention_step(call.activation()?, keys, values))
    }
}

impl Kernel for RetentionStep {
    fn units(&self, call: &Call<'_>) -> Result<Vec<Unit>, Error> {
        Ok(vec![self.unit(call)?])
    }

    unsafe fn launch(&self, call: &Call<'_>, results: &[u64], stream: &Stream) -> Result<(), Error> {
        let [batch, heads] =
            [position!(SCHEMA, dimension "batch"), position!(SCHEMA, dimension "heads")].map(|d| call.size(d));
        if batch == 0 {
            return Ok(());
        }
        let [keys, values] = sizes(call);
        let function = self
            .function
            .get([keys, values], || Ok(self.device.module(&self.unit(call)?)?.function("retention_step")?))?;
        let (tiles, rows) = (values.div_ceil(COLUMNS), batch * heads);
        let splits = splits(self.device.multiprocessors(), tiles * rows, keys);
        let [partial] = self.device.scratch(stream, [rows * splits * values * size_of::<f32>()])?;
        let arrived = self.device.counters(stream, rows)?;
        let shape = LaunchShape::new([grid(tiles)?, grid(splits)?, grid(rows)?], THREADS);
        let operands = [
            position!(SCHEMA, operand "q"),
            position!(SCHEMA, operand "k"),
            position!(SCHEMA, operand "v"),
            position!(SCHEMA, operand "cos"),
            position!(SCHEMA, operand "sin"),
            position!(SCHEMA, operand "scale"),
            position!(SCHEMA, operand "state"),
            position!(SCHEMA, operand "gate"),
            position!(SCHEMA, operand "norm"),
        ];
        let mut arguments = operands.map(|operand| call.address(operand)).to_vec();
        arguments.extend([results[position!(SCHEMA, result "o")], results[position!(SCHEMA, result "present")]]);
        arguments.extend([partial, arrived, heads as u64, u64::from(self.epsilon.to_bits())]);
        // SAFETY: the arguments are the members of the kernel's structure, all of eight bytes; the caller vouches for
        // what they point to, which has the shapes that the schema says; scratch memory has the sizes in the source.
        Ok(unsafe { function.launch(stream, &shape, &Arguments::new().words(&arguments)) }?)
    }
}

#[cfg(test)]
mod tests {
    use super::splits;

    #[test]
    fn rows_are_divided_where_heads_do_not_fill_the_gpu() {
        // A head of 1536 values is 12 blocks; 132 multiprocessors.
        assert_eq!(splits(132, 12 * 2, 384), 8);
        assert_eq!(splits(132, 12 * 2 * 64, 384), 4);
        assert_eq!(splits(132, 12, 16), 2, "no block without rows");
        assert_eq!(splits(132, 12, 2), 1);
    }
}
