//! The blocks both models are made of.

use densessm_graph::{Scope, Value};

/// `y = x Wᵀ`: `[.., d_in] -> [.., d_out]`.
pub(crate) fn linear<'g>(p: Scope<'g>, name: &str, x: Value<'g>, d_out: usize) -> Value<'g> {
    p.scope(name, |p| x.matmul(p.weight_t("weight", [d_out, x.size(-1)])))
}

/// `y = x Wᵀ + b`: `[.., d_in] -> [.., d_out]`.
pub(crate) fn linear_bias<'g>(p: Scope<'g>, name: &str, x: Value<'g>, d_out: usize) -> Value<'g> {
    p.scope(name, |p| x.matmul(p.weight_t("weight", [d_out, x.size(-1)])) + p.weight("bias", [d_out]))
}

/// `y = w ∘ x / sqrt(mean(x²) + eps)` over the last axis: `[.., n] -> [.., n]`.
pub(crate) fn rms_norm<'g>(p: Scope<'g>, name: &str, x: Value<'g>, eps: f64) -> Value<'g> {
    p.scope(name, |p| x / (x.powf(2.0).reduce_mean(-1) + eps as f32).sqrt() * p.weight("weight", [x.size(-1)]))
}

/// `y = silu(W₂ silu(W₁ x))`, a gate: `[.., hidden] -> [.., d_out]`.
pub(crate) fn gate<'g>(p: Scope<'g>, name: &str, x: Value<'g>, middle: usize, d_out: usize) -> Value<'g> {
    p.scope(name, |p| linear(p, "fc2", linear(p, "fc1", x, middle).silu(), d_out).silu())
}
