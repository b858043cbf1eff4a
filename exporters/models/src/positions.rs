//! What retention derives from a token's absolute position: its rotation and its normaliser.

use densessm_graph::{DType, Scope, Value};
use densessm_proto::DenseRetNet;
use std::f64::consts::TAU;

/// Angles are counted in units of 2^-40 revolutions, exactly, so that late positions are as precise as early ones.
const REVOLUTION_BITS: u32 = 40;
/// From this head on, `s_t` is `t + 1` to the last digit of fp32 at every position below 2^40. Later heads use its decay,
/// so that neither side of the quotient leaves fp32's range, where it would be 0/0.
const LAST_DISTINCT_HEAD: usize = 64;

/// What every layer uses of the tokens' positions.
#[derive(Clone, Copy)]
pub(crate) struct Positions<'g> {
    /// Cosines of `p θ_j`: `[B, T, dk/2]`.
    pub(crate) cos: Value<'g>,
    /// Sines of `p θ_j`: `[B, T, dk/2]`.
    pub(crate) sin: Value<'g>,
    /// The normaliser `1/sqrt(s_t)`: `[B, T, H]`.
    pub(crate) scale: Value<'g>,
}

/// Rotation and normaliser of the call's tokens, the first of which has position `past_length`.
pub(crate) fn positions<'g>(p: Scope<'g>, m: &DenseRetNet, past_length: Value<'g>, tokens: Value<'g>) -> Positions<'g> {
    p.scope("positions", |p| {
        let position = (past_length.unsqueeze(-1) + p.range(tokens.dim(1))).unsqueeze(-1); // [B, T, 1]
        let angle = angle(p, m, position);
        Positions { cos: angle.cos(), sin: angle.sin(), scale: scale(p, m, position) }
    })
}

/// `p θ_j` modulo a revolution, `θ_j = 10000^(-j/(dk/2 - 1))`: `[B, T, 1] -> [B, T, dk/2]`.
///
/// The product is computed in integers, whose overflow does not change the remainder; the error is 2^-41 revolutions times
/// the position, and 6e-8 revolutions of rounding.
fn angle<'g>(p: Scope<'g>, m: &DenseRetNet, position: Value<'g>) -> Value<'g> {
    let half = m.head_key_dim() / 2;
    let last = half.saturating_sub(1).max(1) as f64;
    let revolution = f64::from(REVOLUTION_BITS).exp2();
    let steps: Vec<i64> =
        (0..half).map(|j| (10000_f64.powf(-(j as f64) / last) / TAU * revolution).round() as i64).collect();
    let fraction = (position * p.integers("theta", &steps)) % (1_i64 << REVOLUTION_BITS);
    fraction.cast(DType::F32) * (TAU / revolution) as f32
}

/// `1/sqrt(s_t)`, `s_t = (1 - γ_h^(t+1)) / (1 - γ_h)`: `[B, T, 1] -> [B, T, H]`.
///
/// With `x = -(t+1) ln γ_h` and `h = tanh(x/2)`, `1 - γ_h^(t+1) = 2h / (1 + h)`, which loses no digits where γ is close
/// to 1.
fn scale<'g>(p: Scope<'g>, m: &DenseRetNet, position: Value<'g>) -> Value<'g> {
    let heads = || (0..m.num_attention_heads).map(|head| head.min(LAST_DISTINCT_HEAD));
    let halves: Vec<f32> = heads().map(|head| (-0.5 * DenseRetNet::log_decay(head)) as f32).collect();
    let halved_gaps: Vec<f32> = heads().map(|head| (0.5 * DenseRetNet::decay_gap(head)) as f32).collect();
    let h = ((position + 1).cast(DType::F32) * p.floats("half_log_decay", &halves)).tanh();
    (p.floats("half_gap", &halved_gaps) * (h + 1.0) / h).sqrt()
}
