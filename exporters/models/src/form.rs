//! The two forms of every model, parallel and recurrent, which share one definition of the layers.

use crate::nn::{linear, times_transposed};
use densessm_graph::{DType, Dim, Graph, Scope, TensorType, Value};
use densessm_proto::{
    GraphKind, LogitsMode, StateTensor,
    states::{BATCH, INPUT_IDS, LENGTH_DTYPE, LOGITS, PAST_LENGTH, PRESENT_LENGTH, SEQUENCE, SEQUENCE_LENGTHS},
};
use std::{cell::RefCell, collections::BTreeMap};

/// How the tokens of a call arrive: the one argument in which the parallel and the recurrent graph differ.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Form<'g> {
    /// Many tokens a call, in right-padded rows.
    Parallel {
        /// Valid tokens of each row, int32 `[B]`.
        lengths: Value<'g>,
    },
    /// One token a call.
    Recurrent,
}

/// The inputs of a call, and the outputs emitted so far.
pub(crate) struct GraphIo<'g> {
    graph: &'g Graph,
    pub(crate) form: Form<'g>,
    /// Token ids, int64 `[B, T]`.
    pub(crate) tokens: Value<'g>,
    past: BTreeMap<String, Value<'g>>,
    /// The outputs besides the logits, which come first in the graph.
    present: RefCell<Vec<(String, Value<'g>)>>,
    logits: LogitsMode,
    /// Element type of what products take and return.
    pub(crate) activations: DType,
}

impl<'g> GraphIo<'g> {
    /// Declares the inputs that every model has, in the contract's order.
    pub(crate) fn declare(graph: &'g Graph, kind: GraphKind, logits: LogitsMode, activations: DType) -> Self {
        let sequence = match kind {
            GraphKind::Parallel => Dim::from(SEQUENCE),
            GraphKind::Recurrent => Dim::from(1_usize),
        };
        let tokens = graph.input(INPUT_IDS, TensorType { dtype: DType::I64, shape: vec![BATCH.into(), sequence] });
        let form = match kind {
            GraphKind::Parallel => {
                Form::Parallel { lengths: graph.input(SEQUENCE_LENGTHS, TensorType::new(DType::I32, [BATCH])) }
            }
            GraphKind::Recurrent => Form::Recurrent,
        };
        Self { graph, form, tokens, past: BTreeMap::new(), present: RefCell::default(), logits, activations }
    }

    /// Declares the counter of tokens already consumed, int64 `[B]`, and its output for the next call.
    pub(crate) fn past_length(&self) -> Value<'g> {
        let past = self.graph.input(PAST_LENGTH, TensorType::new(LENGTH_DTYPE, [BATCH]));
        let present = match self.form {
            Form::Parallel { lengths } => past + lengths.cast(LENGTH_DTYPE),
            Form::Recurrent => past + 1,
        };
        self.emit_state(PRESENT_LENGTH, present);
        past
    }

    /// Declares the states' inputs.
    pub(crate) fn past_states(&mut self, states: &[StateTensor]) {
        for state in states {
            let sizes = state.shape.iter().map(|&size| Dim::from(size));
            let shape = std::iter::once(Dim::from(BATCH)).chain(sizes).collect();
            let value = self.graph.input(&state.past, TensorType { dtype: state.dtype, shape });
            self.past.insert(state.past.clone(), value);
        }
    }

    /// A state as it came in.
    pub(crate) fn past(&self, state: &StateTensor) -> Value<'g> {
        self.past[&state.past]
    }

    /// Emits a state's output for the next call.
    pub(crate) fn present(&self, state: &StateTensor, value: Value<'g>) {
        self.emit_state(&state.present, value);
    }

    fn emit_state(&self, name: &str, value: Value<'g>) {
        self.present.borrow_mut().push((name.to_owned(), value));
    }

    /// The hidden vectors whose logits the graph returns: `[B, T, H] -> [B·positions, H]`.
    pub(crate) fn select_positions(&self, x: Value<'g>) -> Value<'g> {
        match (self.form, self.logits) {
            (Form::Recurrent, _) => x.squeeze(1),
            (Form::Parallel { lengths }, LogitsMode::Last) => {
                x.gather_per_row(lengths.cast(DType::I64).unsqueeze(-1) - 1)
            }
            (Form::Parallel { .. }, LogitsMode::All) => {
                x.reshape(vec![Dim::from(BATCH) * Dim::from(SEQUENCE), x.dim(-1)])
            }
        }
    }

    /// Declares the outputs: the logits of those vectors, `[B·positions, V] -> [B, positions, V]`, then the states.
    pub(crate) fn finish(&self, scores: Value<'g>) {
        let logits = match (self.form, self.logits) {
            (Form::Parallel { .. }, LogitsMode::All) => {
                scores.reshape(vec![BATCH.into(), SEQUENCE.into(), scores.dim(-1)])
            }
            _ => scores.unsqueeze(1),
        };
        self.outputs(logits);
    }

    /// Declares the outputs: the logits `[B, positions, V]`, then the states.
    pub(crate) fn outputs(&self, logits: Value<'g>) {
        self.graph.output(LOGITS, logits);
        for (name, value) in self.present.borrow().iter() {
            self.graph.output(name, *value);
        }
    }
}

/// The embedding of the tokens in fp32, and the table it is read from: `[B, T] -> [B, T, hidden]`.
pub(crate) fn embed<'g>(p: Scope<'g>, name: &str, tokens: Value<'g>, size: [usize; 2]) -> (Value<'g>, Value<'g>) {
    let table = p.scope(name, |p| p.weight("weight", size));
    (table.gather(tokens).cast(DType::F32), table)
}

/// The scores of every token in fp32: `[n, hidden] -> [n, V]`. A tied head multiplies with the embedding's table.
pub(crate) fn head<'g>(p: Scope<'g>, x: Value<'g>, table: Value<'g>, tied: bool) -> Value<'g> {
    let scores = match (tied, table.dtype()) {
        (true, DType::F32) => x.gemm_t(table),
        (true, _) => times_transposed(x, table),
        (false, _) => linear(p, "lm_head", x, table.size(0)),
    };
    scores.cast(DType::F32)
}
