//! The selective scan over a sequence on GPUs.
//!
//! Where rows and channels do not fill the GPU, the tokens are divided into segments, which a first launch computes from
//! states of zero and a second one continues.

use super::{
    Call, CudaKernel, Device, Kernel,
    kernel::{Loaded, constants, grid},
    kernels, units,
};
use crate::{AttributeValues, Error};
use densessm_cuda::{Arguments, Function, LaunchShape, Stream, Unit};
use densessm_proto::{
    operators::{GroupSchema, SELECTIVE_SCAN, Schema},
    position,
};
use std::sync::Arc;

const SCHEMA: &Schema = &SELECTIVE_SCAN;
const NEIGHBOURS: usize = position!(SCHEMA, group "neighbours");
const NEIGHBOUR: &GroupSchema = &SCHEMA.groups[NEIGHBOURS];
const PROJECTIONS: usize = position!(SCHEMA, group "projections");
const PROJECTION: &GroupSchema = &SCHEMA.groups[PROJECTIONS];
pub(super) const KERNELS: [CudaKernel; 3] = kernels!(SCHEMA, make);

/// The most neighbours whose states fit a thread's registers.
const MOST_NEIGHBOURS: usize = 3;
/// Tokens that a block loads together: a segment is a multiple of them.
const TILE: usize = 16;
/// The fewest tokens of a segment, the most segments, and the blocks of a multiprocessor that fill it.
const FEWEST_TOKENS: usize = 32;
const MOST_SEGMENTS: usize = 16;
const BLOCKS: usize = 6;

struct SelectiveScan {
    device: Arc<Device>,
    launches: Loaded<Launches>,
}

/// The two kernels, and their blocks.
struct Launches {
    segments: Function,
    scan: Function,
    channels: usize,
    threads: usize,
}

fn make(attributes: &AttributeValues, device: &Arc<Device>) -> Result<Box<dyn Kernel>, Error> {
    let neighbours = attributes.size(position!(SCHEMA, attribute "neighbours"))?;
    if neighbours > MOST_NEIGHBOURS {
        let problem = format!("expected at most {MOST_NEIGHBOURS} on a GPU, got {neighbours}");
        return Err(Error::new("neighbours", problem));
    }
    Ok(Box::new(SelectiveScan { device: Arc::clone(device), launches: Loaded::new() }))
}

/// The states of a channel and the number of neighbours, with which the source is compiled.
fn sizes(call: &Call<'_>) -> [usize; 2] {
    [call.size(position!(SCHEMA, dimension "states")), call.repetitions(NEIGHBOURS)]
}

/// Into how many segments to divide the tokens, where `blocks` blocks compute one segment of all rows.
fn segments(multiprocessors: usize, blocks: usize, time: usize) -> usize {
    let to_fill = BLOCKS * multiprocessors / blocks.max(1);
    to_fill.min(MOST_SEGMENTS).min(time / FEWEST_TOKENS).max(1)
}

impl SelectiveScan {
    fn unit(&self, call: &Call<'_>) -> Result<Unit, Error> {
        let [states, neighbours] = sizes(call);
        Ok(units::selective_scan(call.activation()?, states, neighbours))
    }

    fn load(&self, call: &Call<'_>, stream: &Stream) -> Result<Launches, Error> {
        let module = self.device.module(&self.unit(call)?)?;
        let [channels, threads] = constants(&module, stream, "selective_scan_shape")?;
        let (segments, scan) = (module.function("selective_scan_segments")?, module.function("selective_scan")?);
        Ok(Launches { segments, scan, channels, threads })
    }
}

impl Kernel for SelectiveScan {
    fn units(&self, call: &Call<'_>) -> Result<Vec<Unit>, Error> {
        Ok(vec![self.unit(call)?])
    }

    unsafe fn launch(&self, call: &Call<'_>, results: &[u64], stream: &Stream) -> Result<(), Error> {
        let [batch, time, channels] = [
            position!(SCHEMA, dimension "batch"),
            position!(SCHEMA, dimension "time"),
            position!(SCHEMA, dimension "channels"),
        ]
        .map(|dimension| call.size(dimension));
        if batch * channels == 0 {
            return Ok(());
        }
        let [states, neighbours] = sizes(call);
        let launches = self.launches.get([states, neighbours], || self.load(call, stream))?;
        let blocks = channels.div_ceil(launches.channels);
        let segments = segments(self.device.multiprocessors(), blocks * batch, time);
        let [segment_states, segment_deltas] = match segments {
            1 => [0, 0],
            _ => {
                let recurrences = (1 + neighbours) * segments * batch * channels * size_of::<f32>();
                self.device.scratch(stream, [recurrences * states, recurrences])?
            }
        };

        let own = [
            position!(SCHEMA, operand "own_u"),
            position!(SCHEMA, operand "own_delta"),
            position!(SCHEMA, operand "own_delta_bias"),
            position!(SCHEMA, operand "own_a"),
            position!(SCHEMA, operand "own_b"),
            position!(SCHEMA, operand "own_state"),
        ];
        let of_neighbour = [
            position!(NEIGHBOUR, operand "u"),
            position!(NEIGHBOUR, operand "delta"),
            position!(NEIGHBOUR, operand "delta_bias"),
            position!(NEIGHBOUR, operand "a"),
            position!(NEIGHBOUR, operand "b"),
            position!(NEIGHBOUR, operand "state"),
        ];
        let mut arguments = own.map(|operand| call.address(operand)).to_vec();
        for i in 0..neighbours {
            arguments.extend(of_neighbour.map(|operand| call.member_address(NEIGHBOURS, i, operand)));
        }
        let projection = position!(PROJECTION, operand "projection");
        // The structure's array has at least one entry.
        arguments.extend((0..neighbours.max(1)).map(|i| call.member_address(PROJECTIONS, i, projection)));
        let readout = [
            position!(SCHEMA, operand "c"),
            position!(SCHEMA, operand "skip"),
            position!(SCHEMA, operand "z"),
            position!(SCHEMA, operand "lengths"),
            position!(SCHEMA, operand "channel_gate"),
            position!(SCHEMA, operand "state_gate"),
        ];
        arguments.extend(readout.map(|operand| call.address(operand)));
        arguments.extend([results[position!(SCHEMA, result "y")], results[position!(SCHEMA, result "present")]]);
        arguments.extend([segment_states, segment_deltas]);
        let tokens = time.div_ceil(segments).next_multiple_of(TILE);
        arguments.extend([batch, time, channels, segments, tokens].map(|size| size as u64));

        let shape = |depth: usize| -> Result<LaunchShape, Error> {
            let shape = [grid(blocks)?, grid(batch * segments)?, grid(depth)?];
            Ok(LaunchShape::new(shape, launches.threads as u32))
        };
        let arguments = Arguments::new().words(&arguments);
        // SAFETY: the arguments are the members of the kernels' structure, all of eight bytes; the caller vouches for
        // what they point to, which has the shapes that the schema says; scratch memory has the sizes in the source.
        unsafe {
            if segments > 1 {
                launches.segments.launch(stream, &shape(1 + neighbours)?, &arguments)?;
            }
            launches.scan.launch(stream, &shape(1)?, &arguments)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::segments;

    #[test]
    fn a_prompt_of_few_rows_is_divided_until_it_fills_the_gpu() {
        // 2048 channels are 64 blocks; 132 multiprocessors.
        assert_eq!(segments(132, 64, 2048), 12);
        assert_eq!(segments(132, 8 * 64, 2048), 1, "full already");
        assert_eq!(segments(132, 64, 100), 3, "short segments cost more than they bring");
        assert_eq!([segments(132, 64, 1), segments(132, 64, 0)], [1, 1]);
        assert_eq!(segments(132, 1, 1 << 20), 16);
    }
}
