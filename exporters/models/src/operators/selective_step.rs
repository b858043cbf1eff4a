//! One token of the selective scan: the neighbours' states have just been computed and are read as they are.

use super::{
    in_fp32,
    selective_scan::{Recurrence, fused, readouts},
};
use densessm_graph::{Attribute, Operator, Scope, Value, values};
use densessm_proto::operators::{self, Schema};

const SCHEMA: &Schema = &operators::SELECTIVE_STEP;

/// One token of [`SelectiveScan`](super::SelectiveScan).
#[derive(Clone, Copy, Debug)]
pub struct SelectiveStep {
    /// Number of neighbours that are read.
    pub neighbours: usize,
}

/// Operands of [`SelectiveStep`]; results are `y [B, 1, D]` and the state after this token `[B, D, N]`.
#[derive(Clone, Debug)]
pub struct StepInputs<'g> {
    /// The layer's own recurrence, with T = 1.
    pub own: Recurrence<'g>,
    /// Output vector `[B, 1, N]`.
    pub c: Value<'g>,
    /// Skip weights `[D]`.
    pub skip: Value<'g>,
    /// Output gate before silu `[B, 1, D]`.
    pub z: Value<'g>,
    /// Channels' gate before silu `[B, 1, D]`; no gate if absent.
    pub channel_gate: Option<Value<'g>>,
    /// States' gate before silu `[B, 1, N]`; no gate if absent.
    pub state_gate: Option<Value<'g>>,
    /// The hidden states after this token `[B, D, N]` of the layers below that are read, nearest first.
    pub neighbours: Vec<Value<'g>>,
    /// Their projections `[N, N]`; the identity if there are none.
    pub projections: Vec<Value<'g>>,
}

values!(StepInputs { ..own, c, skip, z, channel_gate, state_gate, neighbours, projections });

impl Operator for SelectiveStep {
    const NAME: &'static str = SCHEMA.name;
    const DOMAIN: &'static str = SCHEMA.domain;
    const VERSION: i64 = SCHEMA.version;
    type Inputs<'g> = StepInputs<'g>;
    type Outputs<'g> = [Value<'g>; 2];

    fn schema(&self) -> Option<&'static Schema> {
        Some(SCHEMA)
    }

    fn attributes(&self) -> Vec<(&'static str, Attribute)> {
        vec![("neighbours", (self.neighbours as i64).into())]
    }

    fn body<'g>(&self, _: Scope<'g>, inputs: StepInputs<'g>) -> [Value<'g>; 2] {
        let activation = inputs.own.u.dtype();
        let StepInputs { own, c, skip, z, channel_gate, state_gate, neighbours, projections } = in_fp32(inputs);
        let Recurrence { u, delta, delta_bias, a, b, state } = own;
        let column = |row: Value<'g>| row.transpose([0, 2, 1]); // [B, 1, ·] -> [B, ·, 1]
        let delta = (delta + delta_bias).softplus();
        let h = (column(delta) * a).exp() * state + column(delta * u) * b; // [B, D, N]

        let read = |h: Value<'g>, c: Value<'g>| column(h.matmul(column(c)));
        let readouts = readouts(c, state_gate, neighbours.len(), &projections);
        let dense = neighbours.iter().zip(readouts).map(|(h, c)| read(*h, c)).reduce(|sum, read| sum + read);
        let y = fused(read(h, c), channel_gate, dense);
        [((y + skip * u) * z.silu()).cast(activation), h]
    }
}
