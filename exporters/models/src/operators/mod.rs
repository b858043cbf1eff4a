//! The operators of the domain `ai.densessm`: what a layer computes between its projections.
//!
//! An operator exists twice, for a sequence and for one token, where the two differ by more than a size. Bodies compute
//! in fp32 whatever the type of the activations is.

mod causal_conv;
mod dense_norm;
mod mamba_step;
mod retention;
mod retention_step;
mod selective_scan;
mod selective_step;

pub use causal_conv::{CausalConv, ConvInputs};
pub use dense_norm::{DenseNorm, DenseNormInputs};
pub use mamba_step::{GateInputs, LayerInputs, LayerResults, MambaStep, MambaStepInputs};
pub use retention::{Retention, RetentionInputs};
pub use retention_step::{RetentionStep, RetentionStepInputs};
pub use selective_scan::{Recurrence, ScanInputs, SelectiveScan};
pub use selective_step::{SelectiveStep, StepInputs};

use densessm_graph::{DType, Dim, Scope, Value, ValueList};

/// The same operands with activations in fp32.
fn in_fp32<'g, V: ValueList<'g>>(operands: V) -> V {
    operands.map(&mut |value| if value.dtype().is_float() { value.cast(DType::F32) } else { value })
}

/// The tokens of the call, counted from 0: int64 `[time]`.
///
/// The absolute value changes no number. It hides from tract that they are consecutive, which its optimiser would
/// reason about symbolically for longer than it takes for all else.
fn counted<'g>(p: Scope<'g>, time: Dim) -> Value<'g> {
    p.range(time).abs()
}

/// The mask of valid tokens of right-padded rows: `[batch] -> [batch, time, 1]`, 1 up to each row's end and 0 after it.
fn valid<'g>(p: Scope<'g>, lengths: Value<'g>, like: Value<'g>) -> Value<'g> {
    let position = counted(p, like.dim(1));
    position.less(lengths.cast(DType::I64).unsqueeze(1)).cast(DType::F32).unsqueeze(-1)
}
