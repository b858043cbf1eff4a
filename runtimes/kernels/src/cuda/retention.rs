//! Retention over a sequence on GPUs: in chunks on tensor cores for half-precision activations and heads of suitable
//! sizes, else token by token in fp32.

use super::{
    Activation, Call, CudaKernel, Device, Kernel,
    kernel::{Loaded, grid},
    kernels, units,
};
use crate::{AttributeValues, Error};
use densessm_cuda::{Arguments, Function, LaunchShape, Stream, Unit};
use densessm_proto::{
    operators::{RETENTION, Schema},
    position,
};
use std::sync::Arc;

const SCHEMA: &Schema = &RETENTION;
pub(super) const KERNELS: [CudaKernel; 3] = kernels!(SCHEMA, make);

/// Tokens of a chunk, which the scores of one chunk take for each token, too.
const CHUNK: usize = 64;
/// The fewest tokens of a segment.
const FEWEST_TOKENS: usize = 512;
/// Tokens that the recurrent kernel loads together, the columns of its blocks, and their threads.
const TOKENS: usize = 8;
const COLUMNS: usize = 64;
const THREADS: u32 = 256;
/// Threads of the kernels that rotate and that finish.
const ROTATE_THREADS: u32 = 128;
const FINISH_THREADS: u32 = 128;

struct Retention {
    device: Arc<Device>,
    epsilon: f32,
    launches: Loaded<Launches>,
}

/// The kernels that run for heads of some size, in this order, and their blocks.
struct Launches {
    prepare: Function,
    prepare_threads: u32,
    prepare_shared: u32,
    /// Computes what each segment adds to a state of zeros; only for chunks.
    states: Option<Function>,
    main: Function,
    threads: u32,
    shared: u32,
    /// Columns of a block.
    columns: usize,
    finish: Function,
}

fn make(attributes: &AttributeValues, device: &Arc<Device>) -> Result<Box<dyn Kernel>, Error> {
    let epsilon = attributes.float(position!(SCHEMA, attribute "epsilon"))?;
    Ok(Box::new(Retention { device: Arc::clone(device), epsilon, launches: Loaded::new() }))
}

/// The keys and values of a head, with which the source is compiled.
fn sizes(call: &Call<'_>) -> [usize; 2] {
    [2 * call.size(position!(SCHEMA, dimension "pairs")), call.size(position!(SCHEMA, dimension "head_value"))]
}

/// Whether heads of these sizes run on tensor cores.
fn in_chunks(activation: Activation, [keys, values]: [usize; 2]) -> bool {
    activation != Activation::F32 && units::retention_chunks_fit(keys, values)
}

/// Into how many segments to divide the tokens, where `blocks` blocks compute one segment of all heads and fill a
/// multiprocessor each.
fn segments(multiprocessors: usize, blocks: usize, padded: usize) -> usize {
    (multiprocessors / (2 * blocks).max(1)).min(padded / FEWEST_TOKENS).max(1)
}

impl Retention {
    fn load(&self, activation: Activation, of: [usize; 2], stream: &Stream) -> Result<Launches, Error> {
        if in_chunks(activation, of) {
            match self.load_chunks(activation, of, stream) {
                // The other kernel needs less shared memory.
                Err(densessm_cuda::Error::DeviceTooSmall { .. }) => {}
                loaded => return Ok(loaded?),
            }
        }
        self.load_recurrent(activation, of)
    }

    fn load_chunks(
        &self,
        activation: Activation,
        [keys, values]: [usize; 2],
        stream: &Stream,
    ) -> Result<Launches, densessm_cuda::Error> {
        let module = self.device.loaded(&units::retention_chunks(activation, keys, values))?;
        let [threads, columns, shared, prepare_threads, prepare_shared] =
            module.constants::<5>(stream, "retention_chunks_shape")?;
        let function = |name: &str, threads: u32, shared: u32| {
            let function = module.function(name)?;
            function.prepare(&LaunchShape::new([1; 3], threads).shared(shared))?;
            Ok::<_, densessm_cuda::Error>(function)
        };
        Ok(Launches {
            prepare: function("retention_chunks_prepare", prepare_threads, prepare_shared)?,
            prepare_threads,
            prepare_shared,
            states: Some(function("retention_chunks_states", threads, shared)?),
            main: function("retention_chunks", threads, shared)?,
            threads,
            shared,
            columns: columns as usize,
            finish: module.function("retention_finish")?,
        })
    }

    fn load_recurrent(&self, activation: Activation, [keys, values]: [usize; 2]) -> Result<Launches, Error> {
        let module = self.device.module(&units::retention(activation, keys, values))?;
        let main = module.function("retention")?;
        // Two stages of some tokens' q, k and values.
        let shared = grid(2 * TOKENS * (2 * keys.next_multiple_of(4) + COLUMNS) * size_of::<f32>())?;
        main.prepare(&LaunchShape::new([1; 3], THREADS).shared(shared))?;
        Ok(Launches {
            prepare: module.function("retention_rotate")?,
            prepare_threads: ROTATE_THREADS,
            prepare_shared: 0,
            states: None,
            main,
            threads: THREADS,
            shared,
            columns: COLUMNS,
            finish: module.function("retention_finish")?,
        })
    }
}

impl Kernel for Retention {
    fn units(&self, call: &Call<'_>) -> Result<Vec<Unit>, Error> {
        let (activation, of) = (call.activation()?, sizes(call));
        let [keys, values] = of;
        let unit = if in_chunks(activation, of) { units::retention_chunks } else { units::retention };
        Ok(vec![unit(activation, keys, values)])
    }

    unsafe fn launch(&self, call: &Call<'_>, results: &[u64], stream: &Stream) -> Result<(), Error> {
        let [batch, time, heads] = [
            position!(SCHEMA, dimension "batch"),
            position!(SCHEMA, dimension "time"),
            position!(SCHEMA, dimension "heads"),
        ]
        .map(|dimension| call.size(dimension));
        if batch == 0 {
            return Ok(());
        }
        let (activation, of) = (call.activation()?, sizes(call));
        let [keys, values] = of;
        let launches = self.launches.get(of, || self.load(activation, of, stream))?;
        let chunked = launches.states.is_some();
        let tokens = if chunked { CHUNK } else { TOKENS };
        let (rows, padded, tiles) = (batch * heads, time.next_multiple_of(tokens), values.div_ceil(launches.columns));
        let segments = if chunked { segments(self.device.multiprocessors(), tiles * rows, padded) } else { 1 };
        let (rotated, scores) = match chunked {
            true => (rows * padded * keys * activation.bytes(), rows * padded * CHUNK * activation.bytes()),
            false => (rows * padded * keys.next_multiple_of(4) * size_of::<f32>(), 0),
        };
        let segment_states = if segments > 1 { segments * rows * keys * values * size_of::<f32>() } else { 0 };
        let scratch = self.device.scratch(stream, [rotated, rotated, scores, segment_states])?;

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
            position!(SCHEMA, operand "lengths"),
        ];
        let mut arguments = operands.map(|operand| call.address(operand)).to_vec();
        arguments.extend([results[position!(SCHEMA, result "o")], results[position!(SCHEMA, result "present")]]);
        arguments.extend(scratch);
        let segment_tokens = padded.div_ceil(segments).next_multiple_of(tokens);
        arguments.extend([time, padded, heads, segments, segment_tokens].map(|size| size as u64));
        arguments.push(u64::from(self.epsilon.to_bits()));

        let arguments = Arguments::new().words(&arguments);
        let (rows, tiles) = (grid(rows)?, grid(tiles)?);
        let prepared = grid(if chunked { padded / CHUNK } else { padded })?;
        let prepare = LaunchShape::new([prepared, rows, 1], launches.prepare_threads).shared(launches.prepare_shared);
        let main = |segments: usize| -> Result<LaunchShape, Error> {
            Ok(LaunchShape::new([tiles, rows, grid(segments)?], launches.threads).shared(launches.shared))
        };
        let finish = LaunchShape::new([grid(time)?, rows, 1], FINISH_THREADS);
        // SAFETY: the arguments are the members of the kernels' structure, all of eight bytes; the caller vouches for
        // what they point to, which has the shapes that the schema says; scratch memory has the sizes in the source.
        unsafe {
            if time > 0 {
                launches.prepare.launch(stream, &prepare, &arguments)?;
            }
            if let Some(states) = launches.states.as_ref().filter(|_| segments > 1) {
                states.launch(stream, &main(segments - 1)?, &arguments)?;
            }
            // Without tokens it copies the state.
            launches.main.launch(stream, &main(segments)?, &arguments)?;
            if time > 0 {
                launches.finish.launch(stream, &finish, &arguments)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::segments;

    #[test]
    fn a_long_prompt_of_few_heads_is_divided() {
        // Two heads of 1536 values are 32 blocks; 132 multiprocessors.
        assert_eq!(segments(132, 32, 2048), 2);
        assert_eq!(segments(132, 32, 512), 1);
        assert_eq!(segments(132, 8 * 32, 2048), 1);
        assert_eq!(segments(132, 32, 0), 1);
    }
}
