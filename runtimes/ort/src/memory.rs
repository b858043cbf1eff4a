//! Memory on the device where states are kept: blocks of rows, and copies that do not leave it.

use crate::{
    cuda::{Address, Cuda, Entered},
    error::failed,
};
use densessm_session::Error;
use ort::{
    memory::{AllocationDevice, Allocator},
    value::Tensor,
};
use std::{
    fmt,
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

/// The memory of one device, as a model's session allocates it.
pub(crate) struct Memory {
    allocator: Arc<Mutex<Allocator>>,
    device: Device,
}

enum Device {
    Host,
    Cuda { index: i32, driver: Cuda },
}

/// The same device has the same display.
impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.device {
            Device::Host => f.write_str("the CPU"),
            Device::Cuda { index, .. } => write!(f, "GPU {index}"),
        }
    }
}

/// Floats of up to `capacity` sequences, `[capacity, ..]`, row after row.
pub(crate) struct Block {
    tensor: Tensor<f32>,
    /// Sizes of one row.
    shape: Vec<usize>,
    capacity: usize,
}

impl Memory {
    pub(crate) fn new(allocator: Arc<Mutex<Allocator>>) -> Result<Self, Error> {
        let device = {
            let allocator = allocator.lock().unwrap_or_else(PoisonError::into_inner);
            let info = allocator.memory_info();
            if info.is_cpu_accessible() {
                Device::Host
            } else if info.allocation_device() == AllocationDevice::CUDA {
                let index = info.device_id();
                Device::Cuda { index, driver: Cuda::open(index).map_err(copying)? }
            } else {
                let problem =
                    format!("expected states on the CPU or on CUDA, got {}", info.allocation_device().as_str());
                return Err(Error::Runtime { what: "ONNX Runtime".to_owned(), problem });
            }
        };
        Ok(Self { allocator, device })
    }

    /// Allocates a block. What it holds is unspecified.
    pub(crate) fn block(&self, capacity: usize, shape: &[usize]) -> Result<Block, Error> {
        let sizes: Vec<i64> = [capacity].iter().chain(shape).map(|&size| size as i64).collect();
        let tensor = {
            let allocator = self.allocator.lock().unwrap_or_else(PoisonError::into_inner);
            Tensor::new(&allocator, sizes).map_err(failed("allocating states"))?
        };
        Ok(Block { tensor, shape: shape.to_vec(), capacity })
    }

    /// Runs copies and waits until they are done, also after one that failed.
    pub(crate) fn copy<R>(&self, copies: impl FnOnce(&Copier<'_>) -> Result<R, Error>) -> Result<R, Error> {
        match &self.device {
            Device::Host => copies(&Copier(None)),
            Device::Cuda { driver, .. } => {
                let copier = Copier(Some(driver.enter().map_err(copying)?));
                let result = copies(&copier);
                let waited = copier.0.as_ref().map_or(Ok(()), Entered::wait).map_err(copying);
                result.and_then(|result| waited.map(|()| result))
            }
        }
    }
}

/// Copies rows within the memory of one device.
pub(crate) struct Copier<'a>(Option<Entered<'a>>);

impl Copier<'_> {
    /// Copies rows of one block to another, whose rows have the same size.
    pub(crate) fn rows(&self, from: &Block, rows: Range<usize>, to: &mut Block, at: usize) -> Result<(), Error> {
        if from.shape != to.shape {
            return Err(copying(format!("expected rows of {:?}, got {:?}", to.shape, from.shape)));
        }
        let (source, target) = (from.floats(rows.clone())?, to.floats(at..at + rows.len())?);
        match &self.0 {
            None => to.host_mut()?[target].copy_from_slice(&from.host()?[source]),
            Some(gpu) => {
                let (start, end) = (from.address(source.start), to.address(target.start));
                // SAFETY: both ranges are inside their blocks, which are different ones and borrowed until `Memory::copy`
                // has waited; no call of the model runs, since it would borrow the states.
                unsafe { gpu.copy(end, start, source.len() * size_of::<f32>()) }.map_err(copying)?;
            }
        }
        Ok(())
    }

    /// Copies one row of a block over another.
    pub(crate) fn row_within(&self, block: &mut Block, from: usize, to: usize) -> Result<(), Error> {
        let (source, target) = (block.floats(from..from + 1)?, block.floats(to..to + 1)?);
        match &self.0 {
            None => block.host_mut()?.copy_within(source, target.start),
            Some(_) if from == to => {}
            Some(gpu) => {
                let (start, end) = (block.address(source.start), block.address(target.start));
                // SAFETY: both rows are inside the block and are different ones; otherwise as in `rows`.
                unsafe { gpu.copy(end, start, source.len() * size_of::<f32>()) }.map_err(copying)?;
            }
        }
        Ok(())
    }

    /// Writes zeros to the first rows of a block.
    pub(crate) fn zero(&self, block: &mut Block, rows: usize) -> Result<(), Error> {
        let target = block.floats(0..rows)?;
        match &self.0 {
            None => block.host_mut()?[target].fill(0.0),
            // A length of nothing is an error of the driver.
            Some(_) if target.is_empty() => {}
            // SAFETY: the range is inside the block; otherwise as in `rows`.
            Some(gpu) => unsafe { gpu.zero(block.address(0), target.len()) }.map_err(copying)?,
        }
        Ok(())
    }

    /// Copies the first rows of a block from the host.
    pub(crate) fn write(&self, block: &mut Block, rows: usize, values: &[f32]) -> Result<(), Error> {
        let target = block.floats(0..rows)?;
        if values.len() != target.len() {
            return Err(copying(format!("expected {} numbers, got {}", target.len(), values.len())));
        }
        match &self.0 {
            None => block.host_mut()?[target].copy_from_slice(values),
            // SAFETY: the range is inside the block and as long as the numbers; otherwise as in `rows`.
            Some(gpu) => unsafe { gpu.write(block.address(0), values) }.map_err(copying)?,
        }
        Ok(())
    }

    /// Copies the first rows of a block to the host.
    pub(crate) fn read(&self, block: &Block, rows: usize) -> Result<Vec<f32>, Error> {
        let source = block.floats(0..rows)?;
        match &self.0 {
            None => Ok(block.host()?[source].to_vec()),
            Some(gpu) => {
                let mut values = vec![0.0; source.len()];
                // SAFETY: the range is inside the block and as long as the numbers; otherwise as in `rows`.
                unsafe { gpu.read(block.address(0), &mut values) }.map_err(copying)?;
                Ok(values)
            }
        }
    }
}

impl Block {
    /// Allocates a block that the processor reads and writes.
    pub(crate) fn on_host(capacity: usize, shape: &[usize]) -> ort::Result<Self> {
        let sizes: Vec<i64> = [capacity].iter().chain(shape).map(|&size| size as i64).collect();
        Ok(Self { tensor: Tensor::new(&Allocator::default(), sizes)?, shape: shape.to_vec(), capacity })
    }

    /// Number of rows that there is memory for.
    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Sizes of one row.
    pub(crate) fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The whole block as ONNX Runtime knows it.
    pub(crate) fn tensor(&self) -> &Tensor<f32> {
        &self.tensor
    }

    /// The numbers of a block that the processor reads.
    pub(crate) fn host(&self) -> Result<&[f32], Error> {
        Ok(self.tensor.try_extract_tensor().map_err(failed("reading states"))?.1)
    }

    fn host_mut(&mut self) -> Result<&mut [f32], Error> {
        Ok(self.tensor.try_extract_tensor_mut().map_err(failed("writing states"))?.1)
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
    fn address(&self, float: usize) -> Address {
        (self.tensor.data_ptr() as usize + float * size_of::<f32>()) as Address
    }
}

/// An error while states were copied.
fn copying(problem: String) -> Error {
    Error::Runtime { what: "ONNX Runtime: copying states".to_owned(), problem }
}
