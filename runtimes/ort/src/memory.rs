//! Memory on the device where states are kept: blocks of rows, and copies that do not leave it.

use crate::{
    device::memory,
    error::failed,
    gpu::{self, Gpu},
};
use densessm_cuda::{Buffer, Stream};
use densessm_session::Error;
use ort::{
    memory::{Allocator, MemoryInfo},
    value::Tensor,
};
use std::{ffi::c_void, fmt, ops::Range, sync::Arc};

/// Blocks begin at multiples of this many bytes.
const ALIGNMENT: usize = 256;

/// The memory of the device that a model runs on.
#[derive(Clone)]
pub(crate) struct Memory {
    device: Device,
}

#[derive(Clone)]
enum Device {
    Host,
    Cuda { gpu: Arc<Gpu>, info: Arc<MemoryInfo<'static>> },
}

/// The same device has the same display.
impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.device {
            Device::Host => f.write_str("the CPU"),
            Device::Cuda { gpu, .. } => write!(f, "GPU {}", gpu.index()),
        }
    }
}

/// Floats of up to `capacity` sequences, `[capacity, ..]`, row after row.
pub(crate) struct Block {
    storage: Storage,
    /// Sizes of one row.
    shape: Vec<usize>,
    capacity: usize,
}

enum Storage {
    Host(Tensor<f32>),
    /// A part of an allocation of the GPU, which has enough memory from the address on.
    Cuda {
        address: u64,
        info: Arc<MemoryInfo<'static>>,
        _allocation: Arc<Buffer<u8>>,
    },
}

impl Memory {
    /// The processor's memory, or that of a GPU.
    pub(crate) fn new(gpu: Option<Arc<Gpu>>) -> Result<Self, Error> {
        let device = match gpu {
            None => Device::Host,
            Some(gpu) => {
                let info = memory(densessm_session::Device::cuda(gpu.index())).map_err(failed("describing memory"))?;
                Device::Cuda { gpu, info: Arc::new(info) }
            }
        };
        Ok(Self { device })
    }

    /// Allocates blocks for rows of these sizes. What they hold is unspecified.
    ///
    /// On a GPU they are one allocation of the driver and not ONNX Runtime's: its arena may hand out memory that a
    /// captured graph uses.
    pub(crate) fn blocks<'s>(
        &self,
        capacity: usize,
        shapes: impl IntoIterator<Item = &'s [usize]>,
    ) -> Result<Vec<Block>, Error> {
        let (gpu, info) = match &self.device {
            Device::Host => {
                let block = |shape| Block::on_host(capacity, shape).map_err(failed("allocating states"));
                return shapes.into_iter().map(block).collect();
            }
            Device::Cuda { gpu, info } => (gpu, info),
        };
        let mut total = 0;
        let mut place = |shape: &'s [usize]| {
            let at = total;
            let floats = shape.iter().try_fold(capacity, |product, &size| product.checked_mul(size))?;
            total = floats.checked_mul(size_of::<f32>())?.checked_next_multiple_of(ALIGNMENT)?.checked_add(at)?;
            Some((shape, at as u64))
        };
        let places: Option<Vec<_>> = shapes.into_iter().map(&mut place).collect();
        let places = places.ok_or_else(|| copying(format!("expected memory for {capacity} rows, got too many")))?;
        let allocation = Buffer::new(gpu.stream().context(), total).map_err(gpu::failed("allocating states"))?;
        let allocation = Arc::new(allocation);
        let block = |(shape, at): (&[usize], u64)| {
            let (address, _allocation) = (allocation.address() + at, Arc::clone(&allocation));
            let storage = Storage::Cuda { address, info: Arc::clone(info), _allocation };
            Block { storage, shape: shape.to_vec(), capacity }
        };
        Ok(places.into_iter().map(block).collect())
    }

    /// Runs copies and waits until they are done, also after one that failed.
    pub(crate) fn copy<R>(&self, copies: impl FnOnce(&Copier<'_>) -> Result<R, Error>) -> Result<R, Error> {
        match &self.device {
            Device::Host => copies(&Copier(None)),
            Device::Cuda { gpu, .. } => {
                let result = copies(&Copier(Some(gpu.stream())));
                let waited = gpu.stream().synchronize().map_err(gpu::failed(COPYING));
                result.and_then(|result| waited.map(|()| result))
            }
        }
    }
}

/// Copies rows within the memory of one device.
pub(crate) struct Copier<'a>(Option<&'a Stream>);

impl Copier<'_> {
    /// Copies rows of one block to another, whose rows have the same size.
    pub(crate) fn rows(&self, from: &Block, rows: Range<usize>, to: &mut Block, at: usize) -> Result<(), Error> {
        if from.shape != to.shape {
            return Err(copying(format!("expected rows of {:?}, got {:?}", to.shape, from.shape)));
        }
        let (source, target) = (from.floats(rows.clone())?, to.floats(at..at + rows.len())?);
        match self.0 {
            None => to.host_mut()?[target].copy_from_slice(&from.host()?[source]),
            Some(_) if source.is_empty() => {}
            Some(stream) => {
                let (start, end) = (from.address(source.start), to.address(target.start));
                // SAFETY: both ranges are inside their blocks, which are different ones and borrowed until `Memory::copy`
                // has waited; no call of the model runs, since it would borrow the states.
                unsafe { stream.copy(end, start, source.len() * size_of::<f32>()) }.map_err(gpu::failed(COPYING))?;
            }
        }
        Ok(())
    }

    /// Copies one row of a block over another.
    pub(crate) fn row_within(&self, block: &mut Block, from: usize, to: usize) -> Result<(), Error> {
        let (source, target) = (block.floats(from..from + 1)?, block.floats(to..to + 1)?);
        match self.0 {
            None => block.host_mut()?.copy_within(source, target.start),
            Some(_) if from == to || source.is_empty() => {}
            Some(stream) => {
                let (start, end) = (block.address(source.start), block.address(target.start));
                // SAFETY: both rows are inside the block and are different ones; otherwise as in `rows`.
                unsafe { stream.copy(end, start, source.len() * size_of::<f32>()) }.map_err(gpu::failed(COPYING))?;
            }
        }
        Ok(())
    }

    /// Writes zeros to the first rows of a block.
    pub(crate) fn zero(&self, block: &mut Block, rows: usize) -> Result<(), Error> {
        let target = block.floats(0..rows)?;
        match self.0 {
            None => block.host_mut()?[target].fill(0.0),
            // SAFETY: the range is inside the block; otherwise as in `rows`. All bits 0 are the float 0.
            Some(stream) => unsafe { stream.zero(block.address(0), target.len() * size_of::<f32>()) }
                .map_err(gpu::failed(COPYING))?,
        }
        Ok(())
    }

    /// Copies the first rows of a block from the host.
    pub(crate) fn write(&self, block: &mut Block, rows: usize, values: &[f32]) -> Result<(), Error> {
        let target = block.floats(0..rows)?;
        if values.len() != target.len() {
            return Err(copying(format!("expected {} numbers, got {}", target.len(), values.len())));
        }
        match self.0 {
            None => block.host_mut()?[target].copy_from_slice(values),
            Some(_) if target.is_empty() => {}
            Some(stream) => {
                // SAFETY: the range is inside the block and as long as the numbers, which are borrowed until the copy is
                // complete; otherwise as in `rows`.
                let written = unsafe { stream.upload(block.address(0), values) };
                stream.synchronize().and(written).map_err(gpu::failed(COPYING))?;
            }
        }
        Ok(())
    }

    /// Copies the first rows of a block to the host.
    pub(crate) fn read(&self, block: &Block, rows: usize) -> Result<Vec<f32>, Error> {
        let source = block.floats(0..rows)?;
        match self.0 {
            None => Ok(block.host()?[source].to_vec()),
            Some(_) if source.is_empty() => Ok(Vec::new()),
            Some(stream) => {
                let mut values = vec![0.0_f32; source.len()];
                // SAFETY: the range is inside the block and as long as the numbers, which are not used before the copy is
                // complete; otherwise as in `rows`.
                let read = unsafe { stream.download(block.address(0), &mut values) };
                stream.synchronize().and(read).map_err(gpu::failed(COPYING))?;
                Ok(values)
            }
        }
    }
}

impl Block {
    /// Allocates a block that the processor reads and writes.
    pub(crate) fn on_host(capacity: usize, shape: &[usize]) -> ort::Result<Self> {
        let sizes: Vec<i64> = [capacity].iter().chain(shape).map(|&size| size as i64).collect();
        let storage = Storage::Host(Tensor::new(&Allocator::default(), sizes)?);
        Ok(Self { storage, shape: shape.to_vec(), capacity })
    }

    /// Number of rows that there is memory for.
    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Sizes of one row.
    pub(crate) fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Where the block is, and what ONNX Runtime calls that memory.
    pub(crate) fn place(&self) -> (&MemoryInfo<'_>, *mut c_void) {
        match &self.storage {
            Storage::Host(tensor) => (tensor.memory_info(), tensor.data_ptr().cast_mut()),
            Storage::Cuda { address, info, .. } => (info, std::ptr::without_provenance_mut(*address as usize)),
        }
    }

    /// The numbers of a block that the processor reads.
    pub(crate) fn host(&self) -> Result<&[f32], Error> {
        match &self.storage {
            Storage::Host(tensor) => Ok(tensor.try_extract_tensor().map_err(failed("reading states"))?.1),
            Storage::Cuda { .. } => Err(copying("expected memory of the host, got a GPU's".to_owned())),
        }
    }

    fn host_mut(&mut self) -> Result<&mut [f32], Error> {
        match &mut self.storage {
            Storage::Host(tensor) => Ok(tensor.try_extract_tensor_mut().map_err(failed("writing states"))?.1),
            Storage::Cuda { .. } => Err(copying("expected memory of the host, got a GPU's".to_owned())),
        }
    }

    /// Where some rows are, counted in floats from the start of the block.
    fn floats(&self, rows: Range<usize>) -> Result<Range<usize>, Error> {
        if rows.end > self.capacity {
            return Err(copying(format!("expected rows below {}, got {rows:?}", self.capacity)));
        }
        let row: usize = self.shape.iter().product();
        Ok(rows.start * row..rows.end * row)
    }

    /// Where a float is in the GPU's memory.
    pub(crate) fn address(&self, float: usize) -> u64 {
        (self.place().1.addr() + float * size_of::<f32>()) as u64
    }
}

const COPYING: &str = "copying states";

/// An error while states were copied.
fn copying(problem: String) -> Error {
    Error::Runtime { what: COPYING.to_owned(), problem }
}
