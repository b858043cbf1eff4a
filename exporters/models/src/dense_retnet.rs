//! DenseRetNet (arXiv 2403.00818, section 3.2; reference file `modeling_dense_gau_retnet.py`): one layer, both forms.

use crate::{
    form::{Call, Form, embed, head},
    nn::{gate, linear, rms_norm},
    operators::{Retention, RetentionInputs, RetentionStep, RetentionStepInputs},
    positions::{Positions, positions},
};
use densessm_graph::{Scope, Value};
use densessm_proto::{DenseRetNet, StateTensor};
use std::collections::VecDeque;

/// The keys and values that a layer hands on to those above it: before its own dense connections and rotation.
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
    call: &Call<'g>,
    past_length: Value<'g>,
) {
    let positions = positions(p, m, past_length, call.tokens);
    let (x, table) = p.scope("model", |p| {
        let (mut x, table) = embed(p, "embed_tokens", call.tokens, [m.vocab_size, m.hidden_size]);
        let mut neighbours = VecDeque::new(); // nearest first
        for (layer, state) in states.iter().enumerate() {
            let own = p.scope(&format!("layers.{layer}"), |p| {
                let normed = rms_norm(p, "input_layernorm", x, m.rms_norm_eps);
                let neighbours = (layer > 0).then(|| &*neighbours.make_contiguous());
                let (out, own) = p.scope("self_attn", |p| retention(p, m, normed, neighbours, positions, state, call));
                x = x + out;
                own
            });
            neighbours.push_front(own);
            neighbours.truncate(m.dense_block_layers);
        }
        (rms_norm(p, "norm", call.asked_for(x), m.rms_norm_eps), table)
    });
    call.finish(head(p, x, table, m.tie_word_embeddings));
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
    call: &Call<'g>,
) -> (Value<'g>, KeyValue<'g>) {
    let (heads, dk, dv) = (m.num_attention_heads, m.head_key_dim(), m.head_value_dim());
    let eps = m.rms_norm_eps;

    let q = linear(p, "q_proj", x, m.query_key_dim).silu();
    let k = linear(p, "k_proj", x, m.query_key_dim).silu() * (dk as f64).powf(-0.5) as f32;
    let [v, g] = linear(p, "to_hidden.0", x, 2 * m.value_dim).silu().split(-1);
    let own = KeyValue { k, v };

    let (k, v) = match neighbours {
        None => (k, v),
        Some(neighbours) => {
            let k = fused(p, "k_select", x, k, neighbours.iter().map(|n| n.k), m.k_gate);
            let v = fused(p, "v_select", x, v, neighbours.iter().map(|n| n.v), m.v_gate);
            (rms_norm(p, "k_norm", k, eps), rms_norm(p, "v_norm", v, eps))
        }
    };

    let past = call.past(state);
    let [o, present] = match call.form {
        Form::Parallel { lengths } => {
            p.call(Retention { heads }, RetentionInputs { q, k, v, cos, sin, scale, state: past, lengths })
        }
        Form::Recurrent => {
            p.call(RetentionStep { heads }, RetentionStepInputs { q, k, v, cos, sin, scale, state: past })
        }
    };
    call.present(state, present);

    let o = rms_norm(p, "group_norm", o.unflatten([heads, dv]), eps).flatten(2);
    (linear(p, "to_out.0", o * g, m.hidden_size), own)
}

/// `own + gate ∘ Σ neighbours`; own alone where there is no neighbour, as there is then nothing to gate.
fn fused<'g>(
    p: Scope<'g>,
    name: &str,
    x: Value<'g>,
    own: Value<'g>,
    neighbours: impl Iterator<Item = Value<'g>>,
    middle: usize,
) -> Value<'g> {
    match neighbours.reduce(|sum, neighbour| sum + neighbour) {
        None => own,
        Some(sum) => own + gate(p, name, x, middle, own.size(-1)) * sum,
    }
}
