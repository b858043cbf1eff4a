//! The calls of a bundle's two graphs.

use crate::{
    binding::Binding,
    error::failed,
    memory::{Block, Memory},
    states::{OrtStates, Step},
    weights::Weights,
};
use densessm_proto::{
    GraphKind, LogitsMode, StateTensor,
    states::{INPUT_IDS, LOGITS, PAST_LENGTH, SEQUENCE_LENGTHS},
};
use densessm_session::{
    Bundle, Device, Error, HostTensor, Logits, Model, RuntimeInfo, Snapshot, States, StatesError, TokenBatch, Values,
    inputs,
};
use ort::{
    memory::Allocator,
    session::{Session, SessionInputValue},
    value::{DynValue, Tensor, TensorElementType},
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

/// A bundle's graphs as sessions.
pub(crate) struct OrtModel {
    bundle: Bundle,
    info: RuntimeInfo,
    parallel: Option<Session>,
    recurrent: Option<Session>,
    layout: Arc<Vec<StateTensor>>,
    /// Where states are kept.
    memory: Arc<Memory>,
    /// The logits of the last prefill.
    prefilled: Tensor<f32>,
    /// The logits of the last step, `[batch, 1, vocabulary]`: steps of all states are bound to its first rows.
    stepped: Arc<Block>,
    /// What the sessions read; dropped after them.
    weights: Option<Arc<Weights>>,
}

impl OrtModel {
    pub(crate) fn new(
        bundle: Bundle,
        info: RuntimeInfo,
        parallel: Option<Session>,
        recurrent: Option<Session>,
        allocator: Arc<Mutex<Allocator>>,
        weights: Option<Arc<Weights>>,
    ) -> Result<Self, Error> {
        let layout = Arc::new(bundle.states());
        let memory = Arc::new(Memory::new(allocator)?);
        let prefilled = host_tensor(&[1]).map_err(failed("allocating logits"))?;
        let stepped = Arc::new(logits_block(&bundle, 0)?);
        Ok(Self { bundle, info, parallel, recurrent, layout, memory, prefilled, stepped, weights })
    }

    fn vocabulary(&self) -> usize {
        self.bundle.architecture().vocab_size()
    }

    /// Checks what a call is fed before anything is bound.
    fn check(&self, tokens: &[i64], rows: usize, states: &States) -> Result<(), Error> {
        if rows != states.batch() {
            let problem = format!("expected {} rows as the states have, got {rows}", states.batch());
            return Err(Error::Input { name: INPUT_IDS.to_owned(), problem });
        }
        if rows == 0 {
            return Err(StatesError::Empty.into());
        }
        inputs::check_tokens(&self.bundle, tokens)
    }

    fn not_loaded(&self, kind: GraphKind) -> Error {
        self.bundle.graph_path(kind).err().unwrap_or(Error::NotLoaded { graph: kind })
    }

    /// Allocates memory for the logits of a step, if there is less.
    fn reserve_logits(&mut self, batch: usize) -> Result<(), Error> {
        let capacity = self.stepped.capacity();
        if batch > capacity {
            // Steps that are bound to the previous block keep it, and are bound anew when they are run next.
            let capacity = batch.max(capacity + capacity / 2);
            self.stepped = Arc::new(logits_block(&self.bundle, capacity)?);
        }
        Ok(())
    }
}

fn logits_block(bundle: &Bundle, capacity: usize) -> Result<Block, Error> {
    Block::on_host(capacity, &[1, bundle.architecture().vocab_size()]).map_err(failed("allocating logits"))
}

fn host_tensor<T: ort::value::PrimitiveTensorElementType + std::fmt::Debug>(shape: &[usize]) -> ort::Result<Tensor<T>> {
    Tensor::new(&Allocator::default(), shape.iter().map(|&size| size as i64).collect::<Vec<_>>())
}

impl Step {
    fn bind(
        session: &Session,
        states: &OrtStates,
        batch: usize,
        counts: bool,
        logits: &Arc<Block>,
        weights: Option<Arc<Weights>>,
    ) -> ort::Result<Self> {
        let (tokens, past_length) = (host_tensor(&[batch, 1])?, host_tensor(&[batch])?);
        let direction = |from: usize| {
            let mut binding = Binding::new(session)?;
            binding.input(INPUT_IDS, &tokens)?;
            if counts {
                binding.input(PAST_LENGTH, &past_length)?;
            }
            states.bind(&mut binding, from)?;
            binding.output_rows(LOGITS, logits, batch)?;
            Ok::<_, ort::Error>(binding)
        };
        let directions = [direction(0)?, direction(1)?];
        Ok(Self { batch, directions, tokens, past_length, logits: Arc::clone(logits), _weights: weights })
    }

    /// Writes the call's integers to where one direction's binding reads them.
    fn feed(&mut self, from: usize, device: Device, tokens: &[i64], past: Option<&[i64]>) -> ort::Result<()> {
        self.tokens.try_extract_tensor_mut()?.1.copy_from_slice(tokens);
        if let Some(past) = past {
            self.past_length.try_extract_tensor_mut()?.1.copy_from_slice(past);
        }
        // What is bound on the CPU is read in place; what is bound on a GPU was copied there when it was bound.
        if !device.is_cpu() {
            let binding = &mut self.directions[from];
            binding.input(INPUT_IDS, &self.tokens)?;
            if past.is_some() {
                binding.input(PAST_LENGTH, &self.past_length)?;
            }
        }
        Ok(())
    }
}

impl Model for OrtModel {
    fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    fn info(&self) -> &RuntimeInfo {
        &self.info
    }

    fn initial_states(&mut self, batch: usize) -> Result<States, Error> {
        let store = OrtStates::zeros(Arc::clone(&self.layout), Arc::clone(&self.memory), batch)?;
        Ok(States::new(&self.bundle, Box::new(store), vec![0; batch]))
    }

    fn restore(&mut self, snapshot: &Snapshot) -> Result<States, Error> {
        snapshot.check(&self.bundle)?;
        let (layout, memory) = (Arc::clone(&self.layout), Arc::clone(&self.memory));
        let store = OrtStates::from_host(layout, memory, snapshot.batch(), snapshot.tensors())?;
        Ok(States::new(&self.bundle, Box::new(store), snapshot.lengths().to_vec()))
    }

    fn prefill(&mut self, tokens: &TokenBatch<'_>, states: &mut States) -> Result<Logits<'_>, Error> {
        self.check(tokens.ids(), tokens.rows(), states)?;
        let (batch, width, vocabulary) = (tokens.rows(), tokens.width(), self.vocabulary());
        let positions = if self.bundle.manifest().logits == LogitsMode::All { width } else { 1 };
        let past: Vec<i64> = states.lengths().to_vec();
        let Some(session) = &mut self.parallel else { return Err(self.not_loaded(GraphKind::Parallel)) };
        let counts = self.bundle.architecture().counts_positions();
        let store = states.store::<OrtStates>(&self.bundle)?;
        let from = store.current();
        let mut run = || -> ort::Result<Tensor<f32>> {
            let lengths: Vec<i32> = tokens.lengths().iter().map(|&length| length as i32).collect();
            let mut logits = host_tensor(&[batch, positions, vocabulary])?;
            let mut binding = Binding::new(session)?;
            binding.input(INPUT_IDS, &Tensor::from_array(([batch, width], tokens.ids().to_vec()))?)?;
            binding.input(SEQUENCE_LENGTHS, &Tensor::from_array(([batch], lengths))?)?;
            if counts {
                binding.input(PAST_LENGTH, &Tensor::from_array(([batch], past.clone()))?)?;
            }
            store.bind(&mut binding, from)?;
            binding.output(LOGITS, &mut logits)?;
            // SAFETY: the binding is this session's. Its blocks belong to the states, which are borrowed mutably until
            // the run is over.
            unsafe { binding.run(session) }?;
            Ok(logits)
        };
        self.prefilled = run().map_err(failed("the parallel graph"))?;
        store.swap();
        states.advance(tokens.lengths().iter().copied());
        let values = self.prefilled.try_extract_tensor().map_err(failed("reading logits"))?.1;
        Ok(Logits { positions, vocabulary, values })
    }

    fn step(&mut self, tokens: &[i64], states: &mut States) -> Result<Logits<'_>, Error> {
        self.check(tokens, tokens.len(), states)?;
        self.reserve_logits(tokens.len())?;
        let (batch, vocabulary) = (tokens.len(), self.vocabulary());
        let counts = self.bundle.architecture().counts_positions();
        let Some(session) = &mut self.recurrent else { return Err(self.not_loaded(GraphKind::Recurrent)) };
        let past: Vec<i64> = states.lengths().to_vec();
        let store = states.store::<OrtStates>(&self.bundle)?;
        let mut step = match store.take_step(&self.stepped) {
            Some(step) => step,
            None => Step::bind(session, store, batch, counts, &self.stepped, self.weights.clone())
                .map_err(failed("binding a step"))?,
        };
        let from = store.current();
        let run = step.feed(from, self.info.device, tokens, counts.then_some(&past)).and_then(|()| {
            // SAFETY: the step's logits are this model's, so it was bound to this session. Its other blocks belong to the
            // states; both model and states are borrowed mutably until the run is over.
            unsafe { step.directions[from].run(session) }
        });
        store.keep_step(step);
        run.map_err(failed("the recurrent graph"))?;
        store.swap();
        states.advance(tokens.iter().map(|_| 1));
        Ok(Logits { positions: 1, vocabulary, values: &self.stepped.host()?[..batch * vocabulary] })
    }

    fn run(
        &mut self,
        graph: GraphKind,
        given: BTreeMap<String, HostTensor>,
    ) -> Result<BTreeMap<String, HostTensor>, Error> {
        let inputs = inputs::complete(&self.bundle, graph, given)?;
        let session = match graph {
            GraphKind::Parallel => &mut self.parallel,
            GraphKind::Recurrent => &mut self.recurrent,
        };
        let Some(session) = session else { return Err(self.not_loaded(graph)) };
        let run = || -> ort::Result<BTreeMap<String, HostTensor>> {
            let inputs = inputs
                .into_iter()
                .map(|(name, tensor)| Ok((name, SessionInputValue::from(value(tensor)?))))
                .collect::<ort::Result<Vec<_>>>()?;
            let outputs = session.run(inputs)?;
            outputs.iter().map(|(name, value)| Ok((name.to_owned(), host(&value)?))).collect()
        };
        run().map_err(failed(&format!("the {graph} graph")))
    }
}

pub(crate) fn value(tensor: HostTensor) -> ort::Result<DynValue> {
    let shape = tensor.shape;
    Ok(match tensor.values {
        Values::Float32(values) => Tensor::from_array((shape, values))?.into_dyn(),
        Values::Int64(values) => Tensor::from_array((shape, values))?.into_dyn(),
        Values::Int32(values) => Tensor::from_array((shape, values))?.into_dyn(),
    })
}

pub(crate) fn host(value: &DynValue) -> ort::Result<HostTensor> {
    let sizes = |shape: &[i64]| shape.iter().map(|&size| size as usize).collect();
    if value.dtype().tensor_type() == Some(TensorElementType::Int64) {
        let (shape, values) = value.try_extract_tensor::<i64>()?;
        return Ok(HostTensor { shape: sizes(shape), values: Values::Int64(values.to_vec()) });
    }
    let (shape, values) = value.try_extract_tensor::<f32>()?;
    Ok(HostTensor { shape: sizes(shape), values: Values::Float32(values.to_vec()) })
}
