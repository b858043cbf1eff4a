//! The operators of the domain `ai.densessm`: what a layer does between its projections.
//!
//! Each exists in two shapes, a sequence and a single token, where the two differ by more than a size.

mod causal_conv;
mod dense_norm;
mod retention;
mod retention_step;
mod selective_scan;
mod selective_step;

pub use causal_conv::{CausalConv, ConvInputs};
pub use dense_norm::{DenseNorm, DenseNormInputs};
pub use retention::{Retention, RetentionInputs};
pub use retention_step::{RetentionStep, RetentionStepInputs};
pub use selective_scan::{Recurrence, ScanInputs, SelectiveScan};
pub use selective_step::{SelectiveStep, StepInputs};

use densessm_graph::{DType, Dim, Scope, Value};

/// The tokens of the call, counted from 0: int64 `[time]`.
///
/// The absolute value changes nothing; it hides from tract that these are consecutive numbers, about which its
/// optimiser would otherwise reason symbolically for longer than all else takes.
fn counted<'g>(p: Scope<'g>, time: Dim) -> Value<'g> {
    p.range(time).abs()
}

/// Which tokens of right-padded rows count: `[batch] -> [batch, time, 1]`, 1 up to each row's end and 0 behind it.
fn valid<'g>(p: Scope<'g>, lengths: Value<'g>, like: Value<'g>) -> Value<'g> {
    let position = counted(p, like.dim(1));
    position.less(lengths.cast(DType::I64).unsqueeze(1)).cast(DType::F32).unsqueeze(-1)
}
