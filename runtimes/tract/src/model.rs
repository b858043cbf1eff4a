//! A bundle loaded on tract.

use crate::{
    constants::Constants,
    graph::{Graph, Slot},
    states::TractStates,
    tensor::{floats, from_host, place, to_host},
};
use densessm_proto::{GraphKind, StateTensor};
use densessm_session::{
    Bundle, Error, HostTensor, LoadOptions, Logits, Model, RuntimeInfo, Snapshot, States, TokenBatch, check_threads,
    inputs,
};
use std::{collections::BTreeMap, sync::Arc};
use tract_linalg::multithread::Executor;
use tract_onnx::prelude::*;

/// The graphs of a bundle as plans.
pub(crate) struct TractModel {
    bundle: Bundle,
    info: RuntimeInfo,
    layout: Arc<[StateTensor]>,
    parallel: Option<Graph>,
    recurrent: Option<Graph>,
    /// The logits of the last call, for the caller to borrow.
    logits: TValue,
}

/// One call's inputs besides the states.
struct Call<'a> {
    kind: GraphKind,
    ids: &'a [i64],
    /// Valid tokens of each row.
    lengths: &'a [usize],
}

impl TractModel {
    /// Loads the graphs asked for.
    pub(crate) fn load(bundle: &Bundle, info: RuntimeInfo, options: &LoadOptions) -> Result<Self, Error> {
        let run_options = RunOptions { executor: executor(options.threads)?, ..RunOptions::default() };
        let mut constants = Constants::default();
        let mut load = |kind: GraphKind| match options.graphs.contains(&kind) {
            true => Graph::load(bundle, kind, &run_options, &mut constants).map(Some),
            false => Ok(None),
        };
        Ok(Self {
            bundle: bundle.clone(),
            info,
            layout: bundle.states().into(),
            parallel: load(GraphKind::Parallel)?,
            recurrent: load(GraphKind::Recurrent)?,
            logits: Tensor::default().into(),
        })
    }

    fn graph(&self, kind: GraphKind) -> Result<&Graph, Error> {
        let graph = match kind {
            GraphKind::Parallel => &self.parallel,
            GraphKind::Recurrent => &self.recurrent,
        };
        graph.as_ref().ok_or(Error::NotLoaded { graph: kind })
    }

    /// Runs one graph and replaces the states, which a call that fails leaves as they were.
    fn advance(&mut self, call: &Call<'_>, states: &mut States) -> Result<Logits<'_>, Error> {
        let (rows, width) = (call.lengths.len(), call.ids.len() / call.lengths.len());
        if rows != states.batch() {
            let problem = format!("expected {} rows as in the states, got {rows}", states.batch());
            return Err(Error::Input { name: "tokens".to_owned(), problem });
        }
        inputs::check_tokens(&self.bundle, call.ids)?;
        let consumed = states.lengths().to_vec();
        let store = states.store::<TractStates>(&self.bundle)?;
        let graph = self.graph(call.kind)?;
        let mut inputs = tvec![];
        for slot in &graph.inputs {
            inputs.push(match *slot {
                Slot::Tokens => place(&[rows, width], call.ids)?,
                Slot::Lengths => {
                    let lengths: Vec<i32> = call.lengths.iter().map(|&length| length as i32).collect();
                    place(&[rows], &lengths)?
                }
                Slot::Consumed => place(&[rows], &consumed)?,
                Slot::State(index) => store.tensors[index].clone(),
                Slot::Logits => return Err(unexpected(call.kind, "takes logits")),
            });
        }
        let outputs = graph.run(inputs)?;
        let mut logits = None;
        let mut present = vec![None; store.tensors.len()];
        for (slot, output) in graph.outputs.iter().zip(outputs) {
            match *slot {
                Slot::Logits => logits = Some(output),
                Slot::State(index) => present[index] = Some(output),
                Slot::Tokens | Slot::Lengths | Slot::Consumed => {}
            }
        }
        let logits = logits.ok_or_else(|| unexpected(call.kind, "gives no logits"))?;
        let present: Option<Vec<TValue>> = present.into_iter().collect();
        let present = present.ok_or_else(|| unexpected(call.kind, "does not give every state"))?;
        let &[batch, positions, vocabulary] = logits.shape() else {
            return Err(unexpected(call.kind, "gives logits that have not three axes"));
        };
        if batch != rows || (positions != 1 && positions != width) || logits.datum_type() != DatumType::F32 {
            return Err(unexpected(call.kind, "gives logits of another size or type"));
        }
        store.tensors = present;
        states.advance(call.lengths.iter().copied());
        self.logits = logits;
        Ok(Logits { positions, vocabulary, values: floats(&self.logits)? })
    }
}

fn unexpected(kind: GraphKind, what: &str) -> Error {
    Error::Runtime { what: format!("the {kind} graph"), problem: what.to_owned() }
}

/// Returns the executor for a number of threads of one operator; none for tract's default.
pub(crate) fn executor(threads: Option<usize>) -> Result<Option<Executor>, Error> {
    check_threads(threads)?;
    Ok(threads.map(|threads| match threads {
        1 => Executor::SingleThread,
        threads => Executor::multithread(threads),
    }))
}

impl Model for TractModel {
    fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    fn info(&self) -> &RuntimeInfo {
        &self.info
    }

    fn initial_states(&mut self, batch: usize) -> Result<States, Error> {
        let store = TractStates::zeros(&self.layout, batch)?;
        Ok(States::new(&self.bundle, Box::new(store), vec![0; batch]))
    }

    fn restore(&mut self, snapshot: &Snapshot) -> Result<States, Error> {
        snapshot.check(&self.bundle)?;
        let store = TractStates::placed(&self.layout, snapshot)?;
        Ok(States::new(&self.bundle, Box::new(store), snapshot.lengths().to_vec()))
    }

    fn prefill(&mut self, tokens: &TokenBatch<'_>, states: &mut States) -> Result<Logits<'_>, Error> {
        let call = Call { kind: GraphKind::Parallel, ids: tokens.ids(), lengths: tokens.lengths() };
        self.advance(&call, states)
    }

    fn step(&mut self, tokens: &[i64], states: &mut States) -> Result<Logits<'_>, Error> {
        let lengths = vec![1; tokens.len()];
        // An empty batch is refused where the tokens are counted.
        TokenBatch::new(tokens, &lengths)?;
        self.advance(&Call { kind: GraphKind::Recurrent, ids: tokens, lengths: &lengths }, states)
    }

    fn run(
        &mut self,
        kind: GraphKind,
        inputs: BTreeMap<String, HostTensor>,
    ) -> Result<BTreeMap<String, HostTensor>, Error> {
        let inputs = inputs::complete(&self.bundle, kind, inputs)?;
        let entry = self.bundle.manifest().graph(kind);
        let names: Vec<String> = entry.map_or(&[][..], |entry| &entry.outputs).iter().map(|e| e.name.clone()).collect();
        let inputs = inputs.iter().map(|(_, tensor)| from_host(tensor)).collect::<Result<TVec<_>, _>>()?;
        let outputs = self.graph(kind)?.run(inputs)?;
        names.into_iter().zip(&outputs).map(|(name, output)| Ok((name, to_host(output)?))).collect()
    }
}
