//! Falcon-Mamba (arXiv 2410.05355, based on Mamba, arXiv 2312.00752, section 3): one layer, both forms.

use crate::{
    form::GraphIo,
    mamba::{self, Connections, Dimensions, LayerStates, conv, out_proj, recurrence, scan, x_proj},
    nn::{linear, linear_bias, rms_norm, vector},
};
use densessm_graph::{DType, Scope, Value};
use densessm_proto::{FalconMamba, StateTensor};

/// The whole model: tokens `[B, T]` to logits.
pub(crate) fn model<'g>(p: Scope<'g>, m: &FalconMamba, states: &[StateTensor], call: &GraphIo<'g>) {
    let dimensions = Dimensions {
        vocab_size: m.vocab_size,
        hidden_size: m.hidden_size,
        num_hidden_layers: m.num_hidden_layers,
        intermediate_size: m.intermediate_size,
        state_size: m.state_size,
        conv_kernel: m.conv_kernel,
        time_step_rank: m.time_step_rank,
        use_bias: m.use_bias,
        use_conv_bias: m.use_conv_bias,
        layer_norm_epsilon: m.layer_norm_epsilon,
        tie_word_embeddings: m.tie_word_embeddings,
    };
    mamba::model(p, &dimensions, states, call, |p, x, states| mixer(p, m, &dimensions, x, states, call));
}

/// One layer: `x [B, T, hidden] -> [B, T, hidden]`.
fn mixer<'g>(
    p: Scope<'g>,
    m: &FalconMamba,
    dimensions: &Dimensions,
    x: Value<'g>,
    states: LayerStates<'_>,
    call: &GraphIo<'g>,
) -> Value<'g> {
    let d = m.intermediate_size;
    let in_proj = if m.use_bias { linear_bias } else { linear };
    let [u, z] = in_proj(p, "in_proj", x, 2 * d).split(-1);
    let u = conv(p, dimensions, u, states, call);
    let [delta, b, c] = x_proj(p, dimensions, u);
    let delta = unit_norm(p, "delta_norm", delta, m.mixer_rms_eps);
    let b = unit_norm(p, "b_norm", b, m.mixer_rms_eps);
    let c = unit_norm(p, "c_norm", c, m.mixer_rms_eps);
    let own = recurrence(p, dimensions, u, delta, b, states.past(call));
    let skip = vector(p, "D", [d]);
    let (y, _) = scan(p, own, [c, skip, z], Connections::default(), states, call);
    out_proj(p, dimensions, y)
}

/// RMSNorm without weights, `x / sqrt(mean(x²) + eps)`, computed in fp32: `[.., n] -> [.., n]`.
///
/// The weights are ones, with which ONNX Runtime recognises the norm and runs it as one kernel.
fn unit_norm<'g>(p: Scope<'g>, name: &str, x: Value<'g>, eps: f64) -> Value<'g> {
    let ones = p.floats("ones", &vec![1.0; x.size(-1)]);
    p.scope(name, |_| rms_norm(x.cast(DType::F32), ones, eps as f32).cast(x.dtype()))
}
