//! The calls of a bundle's two graphs.

use crate::{
    error::failed,
    states::{OrtStates, Step},
    weights::Weights,
};
use densessm_proto::{
    GraphKind, LogitsMode, StateTensor,
    states::{INPUT_IDS, LOGITS, PAST_LENGTH, SEQUENCE_LENGTHS},
};
use densessm_session::{
    Bundle, Device, Error, HostTensor, Logits, Model, RuntimeInfo, Snapshot, States, TokenBatch, Values, inputs,
};
use ort::{
    AsPointer,
    memory::Allocator,
    session::{IoBinding, Session, SessionInputValue},
    value::{DynValue, Tensor, TensorElementType},
};
use std::{
    collections::{BTreeMap, btree_map::Entry},
    ptr,
    sync::{Arc, Mutex},
};

/// A bundle's graphs as sessions.
pub(crate) struct OrtModel {
    bundle: Bundle,
    info: RuntimeInfo,
    parallel: Option<Session>,
    recurrent: Option<Session>,
    layout: Arc<Vec<StateTensor>>,
    /// Where states live.
    allocator: Arc<Mutex<Allocator>>,
    /// The logits of the last prefill.
    prefilled: Tensor<f32>,
    /// The logits of the last step, by batch size: steps of all states of a size are bound to the same.
    stepped: BTreeMap<usize, Tensor<f32>>,
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
        let prefilled = host_tensor(&[1]).map_err(failed("allocating logits"))?;
        Ok(Self { bundle, info, parallel, recurrent, layout, allocator, prefilled, stepped: BTreeMap::new(), weights })
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
        inputs::check_tokens(&self.bundle, tokens)
    }

    fn not_loaded(&self, kind: GraphKind) -> Error {
        self.bundle.graph_path(kind).err().unwrap_or(Error::NotLoaded { graph: kind })
    }
}

fn host_tensor<T: ort::value::PrimitiveTensorElementType + std::fmt::Debug>(shape: &[usize]) -> ort::Result<Tensor<T>> {
    Tensor::new(&Allocator::default(), shape.iter().map(|&size| size as i64).collect::<Vec<_>>())
}

/// Runs what is bound and waits for it. `Session::run_binding` would also wrap each output in a value of its own, for
/// every step anew; here they are bound to tensors that are at hand.
fn run_bound(session: &mut Session, binding: &IoBinding) -> ort::Result<()> {
    // SAFETY: both pointers are those of living objects, options may be null, and the binding is of this very session,
    // which is borrowed mutably: nothing else runs it now.
    let status = unsafe { (ort::api().RunWithBinding)(session.ptr_mut(), ptr::null(), binding.ptr()) };
    // SAFETY: the status was just returned, and is handed over here and nowhere else.
    unsafe { ort::Error::result_from_status(status) }?;
    binding.synchronize_outputs()
}

/// Binds the states' inputs to one set and their outputs to the other.
fn bind_states(
    binding: &mut IoBinding,
    layout: &[StateTensor],
    states: &mut OrtStates,
    from: usize,
) -> ort::Result<()> {
    for (state, tensor) in layout.iter().zip(states.set(from)) {
        binding.bind_input(state.past.as_str(), tensor)?;
    }
    for (state, tensor) in layout.iter().zip(states.set(1 - from)) {
        binding.bind_output(state.present.as_str(), tensor)?;
    }
    Ok(())
}

impl Step {
    fn bind(
        session: &Session,
        layout: &Arc<Vec<StateTensor>>,
        states: &mut OrtStates,
        counts: bool,
        logits: &mut Tensor<f32>,
        weights: Option<Arc<Weights>>,
    ) -> ort::Result<Self> {
        let batch = states.batch();
        let (tokens, past_length) = (host_tensor(&[batch, 1])?, host_tensor(&[batch])?);
        let mut direction = |from: usize| {
            let mut binding = session.create_binding()?;
            binding.bind_input(INPUT_IDS, &tokens)?;
            if counts {
                binding.bind_input(PAST_LENGTH, &past_length)?;
            }
            bind_states(&mut binding, layout, states, from)?;
            binding.bind_output(LOGITS, &mut *logits)?;
            Ok::<_, ort::Error>(binding)
        };
        let directions = [direction(0)?, direction(1)?];
        Ok(Self { model: Arc::clone(layout), directions, tokens, past_length, _weights: weights })
    }

    /// Puts the call's integers where one direction's binding reads them.
    fn feed(&mut self, from: usize, device: Device, tokens: &[i64], past: Option<&[i64]>) -> ort::Result<()> {
        self.tokens.extract_tensor_mut().1.copy_from_slice(tokens);
        if let Some(past) = past {
            self.past_length.extract_tensor_mut().1.copy_from_slice(past);
        }
        // Bound on the processor is read in place; bound on a card was copied there, once, when it was bound.
        if !device.is_cpu() {
            let binding = &mut self.directions[from];
            binding.bind_input(INPUT_IDS, &self.tokens)?;
            if past.is_some() {
                binding.bind_input(PAST_LENGTH, &self.past_length)?;
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
        let store = OrtStates::zeros(Arc::clone(&self.layout), Arc::clone(&self.allocator), batch)?;
        Ok(States::new(&self.bundle, Box::new(store), vec![0; batch]))
    }

    fn restore(&mut self, snapshot: &Snapshot) -> Result<States, Error> {
        snapshot.check(&self.bundle)?;
        let (layout, allocator) = (Arc::clone(&self.layout), Arc::clone(&self.allocator));
        let store = OrtStates::from_host(layout, allocator, snapshot.batch(), snapshot.tensors())?;
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
        let (from, _) = store.current();
        let mut run = || -> ort::Result<Tensor<f32>> {
            let lengths: Vec<i32> = tokens.lengths().iter().map(|&length| length as i32).collect();
            let mut logits = host_tensor(&[batch, positions, vocabulary])?;
            let mut binding = session.create_binding()?;
            binding.bind_input(INPUT_IDS, &Tensor::from_array(([batch, width], tokens.ids().to_vec()))?)?;
            binding.bind_input(SEQUENCE_LENGTHS, &Tensor::from_array(([batch], lengths))?)?;
            if counts {
                binding.bind_input(PAST_LENGTH, &Tensor::from_array(([batch], past.clone()))?)?;
            }
            bind_states(&mut binding, &self.layout, store, from)?;
            binding.bind_output(LOGITS, &mut logits)?;
            run_bound(session, &binding)?;
            Ok(logits)
        };
        self.prefilled = run().map_err(failed("the parallel graph"))?;
        store.turn();
        states.advance(tokens.lengths().iter().copied());
        Ok(Logits { positions, vocabulary, values: self.prefilled.extract_tensor().1 })
    }

    fn step(&mut self, tokens: &[i64], states: &mut States) -> Result<Logits<'_>, Error> {
        self.check(tokens, tokens.len(), states)?;
        let (batch, vocabulary) = (tokens.len(), self.vocabulary());
        let counts = self.bundle.architecture().counts_positions();
        let Some(session) = &mut self.recurrent else { return Err(self.not_loaded(GraphKind::Recurrent)) };
        let logits = match self.stepped.entry(batch) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => {
                new.insert(host_tensor(&[batch, 1, vocabulary]).map_err(failed("allocating logits"))?)
            }
        };
        let past: Vec<i64> = states.lengths().to_vec();
        let store = states.store::<OrtStates>(&self.bundle)?;
        let bound = store.step.take().filter(|step| Arc::ptr_eq(&step.model, &self.layout));
        let mut step = match bound {
            Some(step) => step,
            None => Step::bind(session, &self.layout, store, counts, logits, self.weights.clone())
                .map_err(failed("binding a step"))?,
        };
        let (from, _) = store.current();
        let run = step
            .feed(from, self.info.device, tokens, counts.then_some(&past))
            .and_then(|()| run_bound(session, &step.directions[from]));
        store.step = Some(step);
        run.map_err(failed("the recurrent graph"))?;
        store.turn();
        states.advance(tokens.iter().map(|_| 1));
        Ok(Logits { positions: 1, vocabulary, values: logits.extract_tensor().1 })
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
