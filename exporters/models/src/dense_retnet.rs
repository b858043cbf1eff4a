//! DenseRetNet (arXiv 2403.00818, section 3.2; reference file `modeling_dense_gau_retnet.py`): one layer, both forms.

use crate::{
    form::{Form, GraphIo, embed, head},
    nn::{joined_silu, linear, norm, vector},
    operators::{DenseNorm, DenseNormInputs, Retention, RetentionInputs, RetentionStep, RetentionStepInputs},
    positions::{Positions, positions},
};
use densessm_graph::{DType, Scope, Value};
use densessm_proto::{DenseRetNet, StateTensor};
use std::collections::VecDeque;

/// A layer's keys and values for the layers above: before its own dense connections and rotation.
#[derive(Clone, Copy)]
struct KeyValue<'g> {
    k: Value<'g>,
    v: Value<'g>,
}

/// The whole model: tokens `[B, T]` to logits.
///
/// `past_length` counts the tokens that each row has consumed, int64 `[B]`.
pub(crate) fn model<'g>(
    p: Scope<'g>,
    m: &DenseRetNet,
    states: &[StateTensor],
    call: &GraphIo<'g>,
    past_length: Value<'g>,
) {
    let positions = positions(p, m, past_length, call.tokens);
    let (x, table) = p.scope("model", |p| {
        let (mut x, table) = embed(p, "embed_tokens", call.tokens, [m.vocab_size, m.hidden_size]);
        let mut neighbours = VecDeque::new(); // nearest first
        for (layer, state) in states.iter().enumerate() {
            let own = p.scope(&format!("layers.{layer}"), |p| {
                let normed = norm(p, "input_layernorm", x, m.rms_norm_eps).cast(call.activations);
                let neighbours = (layer > 0).then(|| &*neighbours.make_contiguous());
                let (out, own) = p.scope("self_attn", |p| retention(p, m, normed, neighbours, positions, state, call));
                x = x + out.cast(DType::F32);
                own
            });
            neighbours.push_front(own);
            neighbours.truncate(m.dense_block_layers);
        }
        (norm(p, "norm", call.select_positions(x), m.rms_norm_eps), table)
    });
    call.finish(head(p, x.cast(call.activations), table, m.tie_word_embeddings));
}

/// One layer: `x [B, T, hidden] -> [B, T, hidden]`, and its keys and values for the layers above.
///
/// `neighbours` is `None` in layer 0, which has neither gates nor norms for them.
fn retention<'g>(
    p: Scope<'g>,
    m: &DenseRetNet,
    x: Value<'g>,
    neighbours: Option<&[KeyValue<'g>]>,
    Positions { cos, sin, scale }: Positions<'g>,
    state: &StateTensor,
    call: &GraphIo<'g>,
) -> (Value<'g>, KeyValue<'g>) {
    let (heads, dk, dv) = (m.num_attention_heads, m.head_key_dim(), m.head_value_dim());
    let eps = m.rms_norm_eps;

    // One product computes everything that is multiplied with x; all of it goes through silu.
    let gated = neighbours.is_some_and(|neighbours| !neighbours.is_empty());
    let (keys, values) = (m.query_key_dim, m.value_dim);
    let gates = [("k_select.fc1", vec![m.k_gate]), ("v_select.fc1", vec![m.v_gate])];
    let own = [("q_proj", vec![keys]), ("k_proj", vec![keys]), ("to_hidden.0", vec![values, values])];
    let matrices: Vec<_> = own.into_iter().chain(gates.into_iter().filter(|_| gated)).collect();
    let [q, k, v, g, middles @ ..] = &joined_silu(p, x, &matrices)[..] else { unreachable!("a product has its parts") };
    let (q, k, v, gate) = (*q, *k * (dk as f64).powf(-0.5) as f32, *v, *g);
    let own = KeyValue { k, v };

    let (k, v) = match (neighbours, middles) {
        (None, _) => (k, v),
        (Some(neighbours), &[k_middle, v_middle]) => {
            let k = fused(p, ["k_select", "k_norm"], k, k_middle, neighbours.iter().map(|n| n.k), eps);
            let v = fused(p, ["v_select", "v_norm"], v, v_middle, neighbours.iter().map(|n| n.v), eps);
            (k, v)
        }
        // Without neighbours there is nothing to gate; the norms stay.
        (Some(_), _) => (norm(p, "k_norm", k, eps), norm(p, "v_norm", v, eps)),
    };

    let (past, epsilon) = (call.past(state), eps as f32);
    let norm = vector(p, "group_norm.weight", [dv]);
    let [o, present] = match call.form {
        Form::Parallel { lengths } => p.call(
            Retention { heads, epsilon },
            RetentionInputs { q, k, v, cos, sin, scale, state: past, gate, norm, lengths },
        ),
        Form::Recurrent => p.call(
            RetentionStep { heads, epsilon },
            RetentionStepInputs { q, k, v, cos, sin, scale, state: past, gate, norm },
        ),
    };
    call.present(state, present);
    (linear(p, "to_out.0", o, m.hidden_size), own)
}

/// `RMSNorm(own + gate ∘ Σ neighbours)`, the gate's first half given as `middle = silu(W₁ x)`.
fn fused<'g>(
    p: Scope<'g>,
    [select, norm]: [&str; 2],
    own: Value<'g>,
    middle: Value<'g>,
    neighbours: impl Iterator<Item = Value<'g>>,
    eps: f64,
) -> Value<'g> {
    let width = own.size(-1);
    let gate = linear(p, &format!("{select}.fc2"), middle, width);
    let weight = vector(p, &format!("{norm}.weight"), [width]);
    p.call(DenseNorm { epsilon: eps as f32 }, DenseNormInputs { own, weight, gate, neighbours: neighbours.collect() })
}
