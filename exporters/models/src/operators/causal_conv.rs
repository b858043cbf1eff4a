//! `y_t = silu(bias + Σ_k w_k ∘ u_{t-K+1+k})`: a depthwise convolution that looks back K-1 tokens.

use super::in_fp32;
use densessm_graph::{Attribute, DType, Operator, Scope, Value, values};
use densessm_proto::operators::{self, Schema};

const SCHEMA: &Schema = &operators::CAUSAL_CONV;

/// Causal depthwise convolution with carried inputs, then silu (arXiv 2312.00752, section 3.4).
#[derive(Clone, Copy, Debug)]
pub struct CausalConv;

/// Operands of [`CausalConv`]; results are `y [B, T, D]` and the state after the row's last valid token.
#[derive(Clone, Copy, Debug)]
pub struct ConvInputs<'g> {
    /// Inputs `[B, T, D]`.
    pub u: Value<'g>,
    /// Taps `[K, D]`, K ≥ 2, the newest input's last.
    pub weight: Value<'g>,
    /// The K-1 inputs before this call, oldest first: `[B, D, K-1]`.
    pub state: Value<'g>,
    /// Bias `[D]`.
    pub bias: Option<Value<'g>>,
    /// Valid tokens of each right-padded row, int32 `[B]`; all T if absent.
    pub lengths: Option<Value<'g>>,
}

values!(ConvInputs { u, weight, state, bias, lengths });

impl Operator for CausalConv {
    const NAME: &'static str = SCHEMA.name;
    const DOMAIN: &'static str = SCHEMA.domain;
    const VERSION: i64 = SCHEMA.version;
    type Inputs<'g> = ConvInputs<'g>;
    type Outputs<'g> = [Value<'g>; 2];

    fn schema(&self) -> Option<&'static Schema> {
        Some(SCHEMA)
    }

    fn attributes(&self) -> Vec<(&'static str, Attribute)> {
        Vec::new()
    }

    fn body<'g>(&self, p: Scope<'g>, inputs: ConvInputs<'g>) -> [Value<'g>; 2] {
        let activation = inputs.u.dtype();
        let ConvInputs { u, weight, state, bias, lengths } = in_fp32(inputs);
        let taps = weight.size(0) as i64;
        let window = state.transpose([0, 2, 1]).concat(1, &[u]); // [B, K-1+T, D]

        let y = if u.dim(1).known() == Some(1) {
            (window * weight).reduce_sum(1)
        } else {
            // Tap k covers the window from K-1-k tokens back to as far before its end.
            let tap = |k: i64| {
                let end = (k + 1 < taps).then_some(k + 1 - taps);
                window.slice(1, k, end) * weight.slice(0, k, Some(k + 1))
            };
            (1..taps).fold(tap(0), |sum, k| sum + tap(k))
        };
        let y = bias.map_or(y, |bias| y + bias);

        let present = match lengths {
            None => window.slice(1, 1 - taps, None),
            // A row's last K-1 inputs are in the window from the row's length on.
            Some(lengths) => {
                let back = p.range((taps - 1) as usize).unsqueeze(-1);
                window.gather_per_row(lengths.cast(DType::I64).unsqueeze(1).unsqueeze(2) + back)
            }
        };
        [y.silu().cast(activation), present.transpose([0, 2, 1])]
    }
}
