//! The calls of a bundle's two graphs.

use crate::{
    binding::Binding,
    device::uncaptured,
    error::failed,
    gpu,
    memory::{Block, Memory},
    session::{Lent, Opened, Sessions},
    states::OrtStates,
    step::Step,
};
use densessm_cuda::PinnedBuffer;
use densessm_proto::{
    GraphKind, LogitsMode, StateTensor,
    states::{INPUT_IDS, LOGITS, PAST_LENGTH, SEQUENCE_LENGTHS},
};
use densessm_session::{
    Bundle, Error, HostTensor, Logits, Model, RuntimeInfo, Snapshot, States, StatesError, TokenBatch, Values, inputs,
};
use ort::{
    memory::Allocator,
    session::{RunOptions, SessionInputValue},
    value::{DynValue, Tensor, TensorElementType},
};
use std::{collections::BTreeMap, sync::Arc};

/// A bundle's graphs as sessions.
pub(crate) struct OrtModel {
    bundle: Bundle,
    info: RuntimeInfo,
    sessions: Sessions,
    layout: Arc<Vec<StateTensor>>,
    /// Where states are kept.
    memory: Arc<Memory>,
    /// The logits of the last prefill.
    prefilled: Tensor<f32>,
    /// The logits of the last step, `[batch, 1, vocabulary]`: steps of all states are bound to its first rows. Where
    /// sessions share the model's stream it is in the GPU's memory.
    stepped: Arc<Block>,
    /// The logits of the last step where `stepped` is in the GPU's memory.
    downloaded: Option<PinnedBuffer<f32>>,
    /// Options of a run that waits for the GPU, and of one that does not.
    options: [RunOptions; 2],
    /// The largest batch whose steps are captured.
    cuda_graph_batch: usize,
    /// What the sessions use; dropped after them.
    lent: Arc<Lent>,
}

impl OrtModel {
    pub(crate) fn new(
        bundle: Bundle,
        info: RuntimeInfo,
        sessions: Sessions,
        lent: Arc<Lent>,
        cuda_graph_batch: usize,
    ) -> Result<Self, Error> {
        let layout = Arc::new(bundle.states());
        let memory = Arc::new(Memory::new(lent.gpu().cloned())?);
        let prefilled = host_tensor(&[1]).map_err(failed("allocating logits"))?;
        let stepped = Arc::new(logits_block(&bundle, 0)?);
        let options = || -> ort::Result<_> {
            let mut not_waiting = uncaptured()?;
            not_waiting.disable_device_sync()?;
            Ok([uncaptured()?, not_waiting])
        };
        let options = options().map_err(failed("options of a run"))?;
        Ok(Self {
            bundle,
            info,
            sessions,
            layout,
            memory,
            prefilled,
            stepped,
            downloaded: None,
            options,
            cuda_graph_batch,
            lent,
        })
    }

    fn vocabulary(&self) -> usize {
        self.bundle.architecture().vocab_size()
    }

    /// Checks what a call is fed before anything is bound; `width` is the tokens of a row in the parallel graph.
    fn check(&self, tokens: &[i64], rows: usize, width: Option<usize>, states: &States) -> Result<(), Error> {
        if rows != states.batch() {
            let problem = format!("expected {} rows as the states have, got {rows}", states.batch());
            return Err(Error::Input { name: INPUT_IDS.to_owned(), problem });
        }
        if rows == 0 {
            return Err(StatesError::Empty.into());
        }
        if let Some(engines) = self.lent.engines() {
            engines.check_shape(rows, width)?;
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
            match self.lent.shared_stream() {
                None => self.stepped = Arc::new(logits_block(&self.bundle, capacity)?),
                Some(gpu) => {
                    let vocabulary = self.vocabulary();
                    let blocks = self.memory.blocks(capacity, [&[1, vocabulary][..]])?;
                    let pinned = PinnedBuffer::new(gpu.stream().context(), capacity * vocabulary);
                    self.downloaded = Some(pinned.map_err(gpu::failed("allocating logits"))?);
                    self.stepped = Arc::new(blocks.into_iter().next().ok_or(StatesError::Empty)?);
                }
            }
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
        self.check(tokens.ids(), tokens.rows(), Some(tokens.width()), states)?;
        let (batch, width, vocabulary) = (tokens.rows(), tokens.width(), self.vocabulary());
        let positions = if self.bundle.manifest().logits == LogitsMode::All { width } else { 1 };
        let past: Vec<i64> = states.lengths().to_vec();
        let Some(Opened { session, .. }) = &mut self.sessions.parallel else {
            return Err(self.not_loaded(GraphKind::Parallel));
        };
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
        self.check(tokens, tokens.len(), None, states)?;
        self.reserve_logits(tokens.len())?;
        let (batch, vocabulary) = (tokens.len(), self.vocabulary());
        let counts = self.bundle.architecture().counts_positions();
        let Some(opened) = self.sessions.step(batch) else { return Err(self.not_loaded(GraphKind::Recurrent)) };
        let past: Vec<i64> = states.lengths().to_vec();
        let store = states.store::<OrtStates>(&self.bundle)?;
        let mut step = match store.take_step(&self.stepped) {
            Some(step) => step,
            None => Step::bind(opened, store, counts, &self.stepped, &self.lent, self.cuda_graph_batch)?,
        };
        let from = store.current();
        // SAFETY: the step's logits are this model's, so it was bound to this session. Its other blocks belong to the
        // states; both model and states are borrowed mutably until the work is complete, which is waited for below.
        let submitted = unsafe { step.run(opened, from, tokens, counts.then_some(&past), &self.options[1]) };
        store.keep_step(step);
        let (stepped, floats) = (&self.stepped, batch * vocabulary);
        let values = match (&mut self.downloaded, self.lent.shared_stream()) {
            (Some(downloaded), Some(gpu)) => {
                let downloaded = &mut downloaded[..floats];
                let mut read = || {
                    // SAFETY: the block has as many floats, and the slice is not used before the stream has been waited
                    // for.
                    unsafe { gpu.stream().download(stepped.address(0), downloaded) }
                };
                let read = submitted.and_then(|()| read().map_err(gpu::failed("reading logits")));
                let waited = gpu.stream().synchronize().map_err(gpu::failed("a step"));
                read.and(waited)?;
                &*downloaded
            }
            _ => {
                submitted?;
                &stepped.host()?[..floats]
            }
        };
        store.swap();
        states.advance(tokens.iter().map(|_| 1));
        Ok(Logits { positions: 1, vocabulary, values })
    }

    fn run(
        &mut self,
        graph: GraphKind,
        given: BTreeMap<String, HostTensor>,
    ) -> Result<BTreeMap<String, HostTensor>, Error> {
        let inputs = inputs::complete(&self.bundle, graph, given)?;
        let session = match graph {
            GraphKind::Parallel => &mut self.sessions.parallel,
            GraphKind::Recurrent => &mut self.sessions.recurrent,
        };
        let Some(Opened { session, .. }) = session else { return Err(self.not_loaded(graph)) };
        let options = &self.options[0];
        let run = || -> ort::Result<BTreeMap<String, HostTensor>> {
            let inputs = inputs
                .into_iter()
                .map(|(name, tensor)| Ok((name, SessionInputValue::from(value(tensor)?))))
                .collect::<ort::Result<Vec<_>>>()?;
            let outputs = session.run_with_options(inputs, options)?;
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
