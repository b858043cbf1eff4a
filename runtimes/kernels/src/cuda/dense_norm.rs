//! DenseRetNet's dense connection on GPUs: one block for each vector.

use super::{
    Call, CudaKernel, Device, Kernel,
    kernel::{Loaded, grid},
    kernels, units,
};
use crate::{AttributeValues, Error};
use densessm_cuda::{Arguments, Function, LaunchShape, Stream, Unit};
use densessm_proto::{
    operators::{DENSE_NORM, GroupSchema, Schema},
    position,
};
use std::sync::Arc;

const SCHEMA: &Schema = &DENSE_NORM;
const NEIGHBOURS: usize = position!(SCHEMA, group "neighbours");
const NEIGHBOUR: &GroupSchema = &SCHEMA.groups[NEIGHBOURS];
pub(super) const KERNELS: [CudaKernel; 3] = kernels!(SCHEMA, make);

struct DenseNorm {
    device: Arc<Device>,
    epsilon: f32,
    function: Loaded<Function>,
}

fn make(attributes: &AttributeValues, device: &Arc<Device>) -> Result<Box<dyn Kernel>, Error> {
    let epsilon = attributes.float(position!(SCHEMA, attribute "epsilon"))?;
    Ok(Box::new(DenseNorm { device: Arc::clone(device), epsilon, function: Loaded::new() }))
}

/// The width of the vectors and the number of neighbours, with which the source is compiled.
fn sizes(call: &Call<'_>) -> [usize; 2] {
    [call.size(position!(SCHEMA, dimension "width")), call.repetitions(NEIGHBOURS)]
}

impl DenseNorm {
    fn unit(&self, call: &Call<'_>) -> Result<Unit, Error> {
        let [width, neighbours] = sizes(call);
        Ok(units::dense_norm(call.activation()?, width, neighbours))
    }
}

impl Kernel for DenseNorm {
    fn units(&self, call: &Call<'_>) -> Result<Vec<Unit>, Error> {
        Ok(vec![self.unit(call)?])
    }

    unsafe fn launch(&self, call: &Call<'_>, results: &[u64], stream: &Stream) -> Result<(), Error> {
        let rows = call.size(position!(SCHEMA, dimension "batch")) * call.size(position!(SCHEMA, dimension "time"));
        if rows == 0 {
            return Ok(());
        }
        let [width, neighbours] = sizes(call);
        let function = self
            .function
            .get([width, neighbours], || Ok(self.device.module(&self.unit(call)?)?.function("dense_norm")?))?;
        let shape = LaunchShape::new([grid(rows)?, 1, 1], if width >= 2048 { 256 } else { 128 });
        let mut arguments = vec![
            call.address(position!(SCHEMA, operand "own")),
            call.address(position!(SCHEMA, operand "weight")),
            call.address(position!(SCHEMA, operand "gate")),
        ];
        let vectors = position!(NEIGHBOUR, operand "vectors");
        arguments.extend((0..neighbours).map(|i| call.member_address(NEIGHBOURS, i, vectors)));
        arguments.extend([results[position!(SCHEMA, result "y")], u64::from(self.epsilon.to_bits())]);
        // SAFETY: the arguments are the members of the kernel's structure, all of eight bytes, and there is at least one
        // neighbour; the caller vouches for what they point to, which has the shapes that the schema says.
        Ok(unsafe { function.launch(stream, &shape, &Arguments::new().words(&arguments)) }?)
    }
}
