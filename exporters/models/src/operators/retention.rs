//! Retention over a sequence, in its parallel form.

use super::{counted, in_fp32};
use crate::nn::rms_norm;
use densessm_graph::{Attribute, DType, Operator, Scope, Value, values};
use densessm_proto::{
    DenseRetNet,
    operators::{self, Schema},
};

const SCHEMA: &Schema = &operators::RETENTION;

/// Retention with rotation, decay, normaliser and carried state (arXiv 2307.08621, section 2; DenseRetNet's
/// `γ_h = 1 - 2^(-5-h)`):
///
/// ```text
/// o_i   = RMSNorm(scale_i ∘ (Σ_{j≤i} γ^(i-j) (q_i·k_j) v_j + γ^(i+1) q_i S)) ∘ gate_i
/// S_out = γ^L S + Σ_{i<L} γ^(L-1-i) k_iᵀ v_i          L = the row's length
/// ```
///
/// where q and k are rotated by their positions' angles first, and the norm is taken over each head.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// H: number of heads.
    pub heads: usize,
    /// Added to the mean square in the norm.
    pub epsilon: f32,
}

/// Operands of [`Retention`]; results are `o [B, T, E]` and the state after the row's last valid token.
#[derive(Clone, Copy, Debug)]
pub struct RetentionInputs<'g> {
    /// Queries `[B, T, Q]`, all heads together.
    pub q: Value<'g>,
    /// Keys `[B, T, Q]`.
    pub k: Value<'g>,
    /// Values `[B, T, E]`.
    pub v: Value<'g>,
    /// Cosines of the positions' angles `[B, T, dk/2]`.
    pub cos: Value<'g>,
    /// Sines of the positions' angles `[B, T, dk/2]`.
    pub sin: Value<'g>,
    /// The normaliser `1/sqrt(s_t)` `[B, T, H]`.
    pub scale: Value<'g>,
    /// The state before this call `[B, H, dk, dv]`.
    pub state: Value<'g>,
    /// What the output is multiplied with `[B, T, E]`.
    pub gate: Value<'g>,
    /// Weight of the norm `[dv]`.
    pub norm: Value<'g>,
    /// Valid tokens of each right-padded row, int32 `[B]`.
    pub lengths: Value<'g>,
}

values!(RetentionInputs { q, k, v, cos, sin, scale, state, gate, norm, lengths });

/// `RMSNorm(scale ∘ o) ∘ gate`: `[B, T, H, dv] -> [B, T, E]`.
pub(super) fn norm_and_gate<'g>(
    o: Value<'g>,
    scale: Value<'g>,
    norm: Value<'g>,
    gate: Value<'g>,
    epsilon: f32,
) -> Value<'g> {
    rms_norm(o * scale.unsqueeze(-1), norm, epsilon).flatten(2) * gate
}

/// `ln γ_h` of every head.
pub(super) fn log_decays(heads: usize) -> Vec<f32> {
    (0..heads).map(|h| DenseRetNet::decay(h).ln() as f32).collect()
}

/// Rotates the pairs (2j, 2j+1) of each head by their position's angle: `[B, T, Q] -> [B, H, T, dk]`.
///
/// `(a, b) -> (a cos - b sin, b cos + a sin)`
pub(super) fn rotate<'g>(x: Value<'g>, heads: usize, cos: Value<'g>, sin: Value<'g>) -> Value<'g> {
    let dk = x.size(-1) / heads;
    let [a, b] = x.unflatten([heads, dk / 2, 2]).split(-1); // [B, T, H, dk/2, 1] each
    let (cos, sin) = (cos.unsqueeze(2).unsqueeze(-1), sin.unsqueeze(2).unsqueeze(-1));
    (a * cos - b * sin).concat(-1, &[b * cos + a * sin]).flatten(2).transpose([0, 2, 1, 3])
}

impl Operator for Retention {
    const NAME: &'static str = SCHEMA.name;
    const DOMAIN: &'static str = SCHEMA.domain;
    const VERSION: i64 = SCHEMA.version;
    type Inputs<'g> = RetentionInputs<'g>;
    type Outputs<'g> = [Value<'g>; 2];

    fn schema(&self) -> Option<&'static Schema> {
        Some(SCHEMA)
    }

    fn attributes(&self) -> Vec<(&'static str, Attribute)> {
        vec![("heads", (self.heads as i64).into()), ("epsilon", self.epsilon.into())]
    }

    fn body<'g>(&self, p: Scope<'g>, inputs: RetentionInputs<'g>) -> [Value<'g>; 2] {
        let activation = inputs.v.dtype();
        let RetentionInputs { q, k, v, cos, sin, scale, state, gate, norm, lengths } = in_fp32(inputs);
        let (heads, dv) = (self.heads, v.size(-1) / self.heads);
        let (q, k) = (rotate(q, heads, cos, sin), rotate(k, heads, cos, sin)); // [B, H, T, dk]
        let v = v.unflatten([heads, dv]).transpose([0, 2, 1, 3]); // [B, H, T, dv]

        let log_decay = p.floats("log_decay", &log_decays(heads)).unsqueeze(-1).unsqueeze(-1); // [H, 1, 1]
        let i = counted(p, q.dim(2)).cast(DType::F32); // [T]
        let zero = p.scalar(0.0);

        // D_ij = γ^(i-j) for i ≥ j, else 0; the exponent is clamped to 0 where it is masked.
        let apart = i.unsqueeze(-1) - i.unsqueeze(0); // [T, T]
        let decay = apart.greater_or_equal(zero).select((log_decay * apart.relu()).exp(), zero); // [H, T, T]
        let reach = (log_decay * (i.unsqueeze(-1) + 1.0)).exp(); // γ^(i+1): [H, T, 1]
        let o = (q.matmul(k.transpose([0, 1, 3, 2])) * decay).matmul(v) + reach * q.matmul(state);
        let o = norm_and_gate(o.transpose([0, 2, 1, 3]), scale, norm, gate, self.epsilon);

        let length = lengths.cast(DType::F32).unsqueeze(1).unsqueeze(2).unsqueeze(3); // [B, 1, 1, 1]
        let left = length - 1.0 - i.unsqueeze(-1); // tokens after token i: [B, 1, T, 1]
        let weight = left.greater_or_equal(zero).select((log_decay * left.relu()).exp(), zero); // [B, H, T, 1]
        let state = (log_decay * length).exp() * state + (k * weight).transpose([0, 1, 3, 2]).matmul(v);
        [o.cast(activation), state]
    }
}
