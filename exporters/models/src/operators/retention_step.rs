//! One token of retention.

use super::{
    in_fp32,
    retention::{norm_and_gate, rotate},
};
use densessm_graph::{Attribute, Operator, Scope, Value, values};
use densessm_proto::{
    DenseRetNet,
    operators::{self, Schema},
};

const SCHEMA: &Schema = &operators::RETENTION_STEP;

/// One token of [`Retention`](super::Retention): `S ← γ S + kᵀ v`, `o = RMSNorm(scale ∘ q S) ∘ gate`.
#[derive(Clone, Copy, Debug)]
pub struct RetentionStep {
    /// H: number of heads.
    pub heads: usize,
    /// Added to the mean square in the norm.
    pub epsilon: f32,
}

/// Operands of [`RetentionStep`]; results are `o [B, 1, E]` and the state after this token.
#[derive(Clone, Copy, Debug)]
pub struct RetentionStepInputs<'g> {
    /// Query `[B, 1, Q]`, all heads together.
    pub q: Value<'g>,
    /// Key `[B, 1, Q]`.
    pub k: Value<'g>,
    /// Value `[B, 1, E]`.
    pub v: Value<'g>,
    /// Cosines of the position's angles `[B, 1, dk/2]`.
    pub cos: Value<'g>,
    /// Sines of the position's angles `[B, 1, dk/2]`.
    pub sin: Value<'g>,
    /// The normaliser `1/sqrt(s_t)` `[B, 1, H]`.
    pub scale: Value<'g>,
    /// The state before this token `[B, H, dk, dv]`.
    pub state: Value<'g>,
    /// What the output is multiplied with `[B, 1, E]`.
    pub gate: Value<'g>,
    /// Weight of the norm `[dv]`.
    pub norm: Value<'g>,
}

values!(RetentionStepInputs { q, k, v, cos, sin, scale, state, gate, norm });

impl Operator for RetentionStep {
    const NAME: &'static str = SCHEMA.name;
    const DOMAIN: &'static str = SCHEMA.domain;
    const VERSION: i64 = SCHEMA.version;
    type Inputs<'g> = RetentionStepInputs<'g>;
    type Outputs<'g> = [Value<'g>; 2];

    fn schema(&self) -> Option<&'static Schema> {
        Some(SCHEMA)
    }

    fn attributes(&self) -> Vec<(&'static str, Attribute)> {
        vec![("heads", (self.heads as i64).into()), ("epsilon", self.epsilon.into())]
    }

    fn body<'g>(&self, p: Scope<'g>, inputs: RetentionStepInputs<'g>) -> [Value<'g>; 2] {
        let activation = inputs.v.dtype();
        let RetentionStepInputs { q, k, v, cos, sin, scale, state, gate, norm } = in_fp32(inputs);
        let (heads, dv) = (self.heads, v.size(-1) / self.heads);
        let (q, k) = (rotate(q, heads, cos, sin), rotate(k, heads, cos, sin)); // [B, H, 1, dk]
        let v = v.unflatten([heads, dv]).transpose([0, 2, 1, 3]); // [B, H, 1, dv]

        let decays: Vec<f32> = (0..heads).map(|h| DenseRetNet::decay(h) as f32).collect();
        let decay = p.floats("decay", &decays).unsqueeze(-1).unsqueeze(-1); // [H, 1, 1]
        let state = decay * state + k.transpose([0, 1, 3, 2]) * v; // [B, H, dk, dv]
        let o = norm_and_gate(q.matmul(state).transpose([0, 2, 1, 3]), scale, norm, gate, self.epsilon);
        [o.cast(activation), state]
    }
}
