//! One token of the selective scan: the neighbours' states have just been computed and are read as they are.

use densessm_graph::{Attribute, Operator, Scope, Value, values};
use densessm_proto::operators;

/// One token of [`SelectiveScan`](super::SelectiveScan).
#[derive(Clone, Copy, Debug)]
pub struct SelectiveStep;

/// A layer below whose hidden state is read.
#[derive(Clone, Copy, Debug)]
pub struct NeighbourState<'g> {
    /// Its hidden state after this token `[B, D, N]`.
    pub state: Value<'g>,
    /// The vector it is read with `[B, 1, N]`.
    pub readout: Value<'g>,
}

/// Operands of [`SelectiveStep`]; results are `y [B, 1, D]` and the state after this token `[B, D, N]`.
#[derive(Clone, Debug)]
pub struct StepInputs<'g> {
    /// Input `[B, 1, D]`.
    pub u: Value<'g>,
    /// Step size before softplus `[B, 1, D]`.
    pub delta: Value<'g>,
    /// Decay rates `[D, N]`, negative.
    pub a: Value<'g>,
    /// Input vector `[B, 1, N]`.
    pub b: Value<'g>,
    /// Hidden state before this token `[B, D, N]`.
    pub state: Value<'g>,
    /// Output vector `[B, 1, N]`.
    pub c: Value<'g>,
    /// Skip weights `[D]`.
    pub skip: Value<'g>,
    /// Output gate before silu `[B, 1, D]`.
    pub z: Value<'g>,
    /// What the neighbours' sum is multiplied with `[B, 1, D]`; 1 if absent.
    pub channel_gate: Option<Value<'g>>,
    /// The layers below that are read, nearest first.
    pub neighbours: Vec<NeighbourState<'g>>,
}

values!(NeighbourState { state, readout });
values!(StepInputs { u, delta, a, b, state, c, skip, z, channel_gate, neighbours });

impl Operator for SelectiveStep {
    const NAME: &'static str = operators::SELECTIVE_STEP;
    const DOMAIN: &'static str = operators::DOMAIN;
    const VERSION: i64 = operators::VERSION;
    type Inputs<'g> = StepInputs<'g>;
    type Outputs<'g> = [Value<'g>; 2];

    fn attributes(&self) -> Vec<(&'static str, Attribute)> {
        Vec::new()
    }

    fn body<'g>(&self, _: Scope<'g>, inputs: StepInputs<'g>) -> [Value<'g>; 2] {
        let StepInputs { u, delta, a, b, state, c, skip, z, channel_gate, neighbours } = inputs;
        let column = |row: Value<'g>| row.transpose([0, 2, 1]); // [B, 1, ·] -> [B, ·, 1]
        let delta = delta.softplus();
        let h = (column(delta) * a).exp() * state + column(delta * u) * b; // [B, D, N]

        let read = |h: Value<'g>, c: Value<'g>| column(h.matmul(column(c)));
        let y = read(h, c);
        let dense = neighbours.iter().map(|n| read(n.state, n.readout)).reduce(|sum, read| sum + read);
        let y = dense.map_or(y, |dense| y + channel_gate.map_or(dense, |gate| gate * dense));
        [(y + skip * u) * z.silu(), h]
    }
}
