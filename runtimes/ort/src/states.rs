//! States in ONNX Runtime's tensors: two sets, of which one is current.

use crate::{error::failed, weights::Weights};
use densessm_proto::StateTensor;
use densessm_session::{Error, HostTensor, StateStore, Values};
use ort::{
    memory::{AllocationDevice, Allocator},
    session::IoBinding,
    value::Tensor,
};
use std::{
    any::Any,
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

/// The states of a batch of sequences.
pub(crate) struct OrtStates {
    layout: Arc<Vec<StateTensor>>,
    allocator: Arc<Mutex<Allocator>>,
    batch: usize,
    sets: [Vec<Tensor<f32>>; 2],
    current: usize,
    /// What steps of these states are bound to, made at the first one.
    pub(crate) step: Option<Step>,
}

/// The bindings of steps, one for each direction between the two sets, and the small tensors they share.
pub(crate) struct Step {
    /// The layout of the model whose sessions these are bound to, by which models are told apart: states may be handed
    /// to another model of the same bundle.
    pub(crate) model: Arc<Vec<StateTensor>>,
    pub(crate) directions: [IoBinding; 2],
    pub(crate) tokens: Tensor<i64>,
    pub(crate) past_length: Tensor<i64>,
    /// The bindings keep their sessions alive, and those read these.
    pub(crate) _weights: Option<Arc<Weights>>,
}

impl OrtStates {
    /// Zeros.
    pub(crate) fn zeros(
        layout: Arc<Vec<StateTensor>>,
        allocator: Arc<Mutex<Allocator>>,
        batch: usize,
    ) -> Result<Self, Error> {
        let sets = {
            let memory = allocator.lock().unwrap_or_else(PoisonError::into_inner);
            let set =
                || layout.iter().map(|state| zeros(&memory, &shape(batch, state))).collect::<ort::Result<Vec<_>>>();
            set().and_then(|first| Ok([first, set()?])).map_err(failed("allocating states"))?
        };
        Ok(Self { layout, allocator, batch, sets, current: 0, step: None })
    }

    /// States of those numbers, which have been checked against the layout.
    pub(crate) fn from_host(
        layout: Arc<Vec<StateTensor>>,
        allocator: Arc<Mutex<Allocator>>,
        batch: usize,
        tensors: &BTreeMap<String, HostTensor>,
    ) -> Result<Self, Error> {
        let mut states = Self::zeros(layout, allocator, batch)?;
        for (state, target) in states.layout.iter().zip(&mut states.sets[0]) {
            if let Values::Float32(values) = &tensors[&state.past].values {
                write(target, values).map_err(failed("restoring states"))?;
            }
        }
        Ok(states)
    }

    pub(crate) fn batch(&self) -> usize {
        self.batch
    }

    /// The set that holds the states now, and which of the two it is.
    pub(crate) fn current(&self) -> (usize, &[Tensor<f32>]) {
        (self.current, &self.sets[self.current])
    }

    /// A set, for reading from or writing to in a binding.
    pub(crate) fn set(&mut self, index: usize) -> &mut [Tensor<f32>] {
        &mut self.sets[index]
    }

    /// Makes the other set the current one, once a call has written it.
    pub(crate) fn turn(&mut self) {
        self.current = 1 - self.current;
    }
}

impl StateStore for OrtStates {
    fn fork(&self) -> Result<Box<dyn StateStore>, Error> {
        let mut copy = Self::zeros(Arc::clone(&self.layout), Arc::clone(&self.allocator), self.batch)?;
        for (from, to) in self.current().1.iter().zip(&mut copy.sets[0]) {
            duplicate(from, to).map_err(failed("copying states"))?;
        }
        Ok(Box::new(copy))
    }

    fn tensors(&self) -> Result<BTreeMap<String, HostTensor>, Error> {
        let host = |(state, tensor): (&StateTensor, &Tensor<f32>)| {
            let values = Values::Float32(read(tensor)?);
            Ok((state.past.clone(), HostTensor { shape: shape(self.batch, state), values }))
        };
        self.layout.iter().zip(self.current().1).map(host).collect::<ort::Result<_>>().map_err(failed("reading states"))
    }

    fn as_any(&mut self) -> &mut dyn Any {
        self
    }
}

fn shape(batch: usize, state: &StateTensor) -> Vec<usize> {
    std::iter::once(batch).chain(state.shape.iter().copied()).collect()
}

/// New tensors are zeroed where the processor reaches them; a card's are not.
fn zeros(allocator: &Allocator, shape: &[usize]) -> ort::Result<Tensor<f32>> {
    let mut tensor = Tensor::new(allocator, shape.iter().map(|&size| size as i64).collect::<Vec<_>>())?;
    if !on_host(&tensor) {
        write(&mut tensor, &vec![0.0; shape.iter().product()])?;
    }
    Ok(tensor)
}

fn on_host(tensor: &Tensor<f32>) -> bool {
    tensor.memory_info().is_cpu_accessible()
}

fn write(target: &mut Tensor<f32>, values: &[f32]) -> ort::Result<()> {
    if on_host(target) {
        target.extract_tensor_mut().1.copy_from_slice(values);
        return Ok(());
    }
    let host = Tensor::from_array((target.shape().to_vec(), values.to_vec()))?;
    host.copy_into(target)
}

fn read(tensor: &Tensor<f32>) -> ort::Result<Vec<f32>> {
    if on_host(tensor) {
        return Ok(tensor.extract_tensor().1.to_vec());
    }
    Ok(tensor.to(AllocationDevice::CPU, 0)?.extract_tensor().1.to_vec())
}

fn duplicate(from: &Tensor<f32>, to: &mut Tensor<f32>) -> ort::Result<()> {
    if on_host(from) {
        to.extract_tensor_mut().1.copy_from_slice(from.extract_tensor().1);
        return Ok(());
    }
    from.copy_into(to)
}
