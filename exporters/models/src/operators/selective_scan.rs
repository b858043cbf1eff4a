//! The selective scan over a sequence, with dense hidden-state connections.
//!
//! A neighbour's contribution is that neighbour's own scan, read out with another vector. It is recomputed here, for its
//! states over a whole prompt, `[T, D, N]`, would take too much memory.

use super::{in_fp32, valid};
use densessm_graph::{Attribute, Operator, Scope, Value, values};
use densessm_proto::operators::{self, Schema};

const SCHEMA: &Schema = &operators::SELECTIVE_SCAN;

/// The selective scan (arXiv 2312.00752, section 3.2) with dense neighbours (arXiv 2403.00818, section 3.3):
///
/// ```text
/// h_t = exp(Δ_t a) ∘ h_{t-1} + (Δ_t u_t) b_tᵀ        Δ = softplus(delta + delta_bias)
/// ĥ_t = h_t + G_t ∘ Σ_i P_i h_t^i                    G_t = silu(channel_gate_t) silu(state_gate_t)ᵀ
/// y_t = (ĥ_t c_t + skip ∘ u_t) ∘ silu(z_t)
/// ```
///
/// where `h^i` is neighbour i's state and `P_i` its projection. What is computed is
/// `(G ∘ P h) c = silu(channel_gate) ∘ (h · Pᵀ (silu(state_gate) ∘ c))`.
#[derive(Clone, Copy, Debug)]
pub struct SelectiveScan {
    /// Number of neighbours that are read.
    pub neighbours: usize,
}

/// The operands that a layer's hidden states follow from.
#[derive(Clone, Copy, Debug)]
pub struct Recurrence<'g> {
    /// Inputs `[B, T, D]`.
    pub u: Value<'g>,
    /// Step sizes before bias and softplus `[B, T, D]`.
    pub delta: Value<'g>,
    /// Bias of the step sizes `[D]`.
    pub delta_bias: Value<'g>,
    /// Decay rates `[D, N]`, negative.
    pub a: Value<'g>,
    /// Input vectors `[B, T, N]`.
    pub b: Value<'g>,
    /// Hidden states before this call `[B, D, N]`.
    pub state: Value<'g>,
}

/// Operands of [`SelectiveScan`]; results are `y [B, T, D]` and the state after the row's last valid token.
#[derive(Clone, Debug)]
pub struct ScanInputs<'g> {
    /// The layer's own recurrence.
    pub own: Recurrence<'g>,
    /// Output vectors `[B, T, N]`.
    pub c: Value<'g>,
    /// Skip weights `[D]`.
    pub skip: Value<'g>,
    /// Output gate before silu `[B, T, D]`.
    pub z: Value<'g>,
    /// Valid tokens of each right-padded row, int32 `[B]`.
    pub lengths: Value<'g>,
    /// Channels' gate before silu `[B, T, D]`; no gate if absent.
    pub channel_gate: Option<Value<'g>>,
    /// States' gate before silu `[B, T, N]`; no gate if absent.
    pub state_gate: Option<Value<'g>>,
    /// The layers below that are read, nearest first.
    pub neighbours: Vec<Recurrence<'g>>,
    /// Their projections `[N, N]`; the identity if there are none.
    pub projections: Vec<Value<'g>>,
}

values!(Recurrence { u, delta, delta_bias, a, b, state });
values!(ScanInputs { own, c, skip, z, lengths, channel_gate, state_gate, neighbours, projections });

/// The vectors `[B, T, N]` that read out the neighbours' states: `P_iᵀ (silu(state_gate) ∘ c)`.
pub(super) fn readouts<'g>(
    c: Value<'g>,
    state_gate: Option<Value<'g>>,
    neighbours: usize,
    projections: &[Value<'g>],
) -> Vec<Value<'g>> {
    let c = state_gate.map_or(c, |gate| gate.silu() * c);
    (0..neighbours).map(|i| projections.get(i).map_or(c, |projection| c.matmul(*projection))).collect()
}

/// `own + silu(channel_gate) ∘ Σ reads`: `[B, T, D]`.
pub(super) fn fused<'g>(own: Value<'g>, channel_gate: Option<Value<'g>>, dense: Option<Value<'g>>) -> Value<'g> {
    let Some(dense) = dense else { return own };
    own + channel_gate.map_or(dense, |gate| gate.silu() * dense)
}

/// The inputs of one token, `[Δ, Δ u, b, r]`, each with a size of 1 for the axis of `[B, D, N]` that it lacks.
type Slice<'g> = [Value<'g>; 4];

impl<'g> Recurrence<'g> {
    /// The inputs of every token. Δ is 0 after each row's end, which keeps the state: decay 1, input 0.
    fn discretize(self, readout: Value<'g>, valid: Value<'g>) -> Slice<'g> {
        let delta = (self.delta + self.delta_bias).softplus() * valid;
        let (of_channels, of_states) = (|x: Value<'g>| x.unsqueeze(-1), |x: Value<'g>| x.unsqueeze(2));
        [of_channels(delta), of_channels(delta * self.u), of_states(self.b), of_states(readout)]
    }
}

/// `h_t = exp(Δ_t a) ∘ h_{t-1} + (Δ_t u_t) b_tᵀ`, read out as `h_t r_t`: returns `[B, D, N]` and `[B, D, 1]`.
fn step_once<'g>(a: Value<'g>, h: Value<'g>, [delta, input, b, readout]: Slice<'g>) -> (Value<'g>, Value<'g>) {
    let h = (delta * a).exp() * h + input * b;
    (h, (h * readout).reduce_sum(-1))
}

impl Operator for SelectiveScan {
    const NAME: &'static str = SCHEMA.name;
    const DOMAIN: &'static str = SCHEMA.domain;
    const VERSION: i64 = SCHEMA.version;
    type Inputs<'g> = ScanInputs<'g>;
    type Outputs<'g> = [Value<'g>; 2];

    fn schema(&self) -> Option<&'static Schema> {
        Some(SCHEMA)
    }

    fn attributes(&self) -> Vec<(&'static str, Attribute)> {
        vec![("neighbours", (self.neighbours as i64).into())]
    }

    fn body<'g>(&self, p: Scope<'g>, inputs: ScanInputs<'g>) -> [Value<'g>; 2] {
        let activation = inputs.own.u.dtype();
        let ScanInputs { own, c, skip, z, lengths, channel_gate, state_gate, neighbours, projections } =
            in_fp32(inputs);
        let readouts = readouts(c, state_gate, neighbours.len(), &projections);
        let valid = valid(p, lengths, own.u);
        let states = (own.state, neighbours.iter().map(|n| n.state).collect::<Vec<_>>());
        let over_time = (
            own.discretize(c, valid),
            neighbours
                .iter()
                .zip(readouts)
                .map(|(n, readout)| n.discretize(readout, valid))
                .collect::<Vec<Slice<'g>>>(),
        );

        let ((state, _), (y, dense)) = p.scan(1, states, over_time, |(h, others), (slice, other_slices)| {
            let (h, y) = step_once(own.a, h, slice);
            let (others, reads): (Vec<_>, Vec<_>) = neighbours
                .iter()
                .zip(others.into_iter().zip(other_slices))
                .map(|(n, (h, slice))| step_once(n.a, h, slice))
                .unzip();
            let sum = reads.into_iter().reduce(|sum, read| sum + read);
            ((h, others), (y, sum))
        });
        let y = fused(y.squeeze(-1), channel_gate, dense.map(|dense| dense.squeeze(-1)));
        [((y + skip * own.u) * z.silu()).cast(activation), state]
    }
}
