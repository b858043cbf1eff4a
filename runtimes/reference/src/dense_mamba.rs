//! DenseMamba (arXiv 2403.00818, section 3.3, based on Mamba, arXiv 2312.00752, section 3); plain Mamba without
//! neighbours.

use crate::{
    Error, Real, State, Tensors,
    blocks::silu,
    config::count_or,
    mamba::{Dimensions, Hidden, biased, read_out},
    trace::ChunkTrace,
};
use ndarray::{Array2, Axis};
use serde_json::Value;
use std::collections::VecDeque;

/// The dimensions.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) mamba: Dimensions,
    /// m: how many layers below are read.
    dense: usize,
}

impl Config {
    pub(crate) fn new(config: &Value, weights: &Tensors) -> Result<Self, Error> {
        let plain = config["model_type"] == "mamba";
        let dense = if plain { 0 } else { count_or(config, "dense_block_layers", 2) };
        Ok(Self { mamba: Dimensions::new(config, weights)?, dense })
    }

    /// Logits of a chunk: `[tokens] -> [tokens, V]`.
    pub(crate) fn chunk<F: Real>(
        &self,
        w: &Tensors,
        tokens: &[i64],
        state: &mut State<F>,
        seen: &mut ChunkTrace<'_, F>,
    ) -> Array2<F> {
        let mut neighbours: VecDeque<Hidden<F>> = VecDeque::new(); // nearest first
        self.mamba.chunk(w, tokens, seen, |l, x, seen| {
            let (out, hidden) = self.mixer(w, l, x, &neighbours, state, seen);
            neighbours.push_front(hidden);
            neighbours.truncate(self.dense);
            out
        })
    }

    fn mixer<F: Real>(
        &self,
        w: &Tensors,
        l: usize,
        x: &Array2<F>,
        neighbours: &VecDeque<Hidden<F>>,
        state: &mut State<F>,
        seen: &mut ChunkTrace<'_, F>,
    ) -> (Array2<F>, Hidden<F>) {
        let Dimensions { channels: d, states: n, .. } = self.mamba;
        let p = format!("backbone.layers.{l}.mixer");

        // [u, z] = split(x Winᵀ);  u = silu(causal_conv(u) + bias);  [δ, b, c] = split(u Wxᵀ)
        let uz = biased(w, &format!("{p}.in_proj"), x);
        let (u, z) = uz.view().split_at(Axis(1), d);
        let u = self.mamba.conv(w, l, u, state, seen);
        let [delta, b, c] = self.mamba.x_proj(w, &p, &u, seen);
        let h = self.mamba.hidden(w, &p, [&delta, &u, &b], state.get(l, "recurrent_state"), seen);

        // ĥ_t = h_t + G_t ∘ Σ_i P_i(h_t of layer l-i)
        let mut fused = h.clone();
        if !neighbours.is_empty() {
            let channel = gate(w, &format!("{p}.dense.channel_gate"), x, d, seen);
            let state = gate(w, &format!("{p}.dense.state_gate"), x, n, seen);
            for (i, neighbour) in neighbours.iter().enumerate() {
                let projection = format!("{p}.dense.projections.{i}.weight");
                for (t, (mut fused, h)) in fused.outer_iter_mut().zip(neighbour.outer_iter()).enumerate() {
                    let projected =
                        if w.has(&projection) { w.linear(&projection, &h.to_owned()) } else { h.to_owned() };
                    for ((d, n), fused) in fused.indexed_iter_mut() {
                        *fused += channel[[t, d]] * state[[t, n]] * projected[[d, n]];
                    }
                }
            }
        }
        (read_out(w, &p, &fused, [&c, &u], z, seen), h)
    }
}

/// `silu(W₂ silu(W₁ x))`; 1 if there is no such gate.
fn gate<F: Real>(w: &Tensors, name: &str, x: &Array2<F>, width: usize, seen: &mut ChunkTrace<'_, F>) -> Array2<F> {
    if !w.has(&format!("{name}.fc1.weight")) {
        return Array2::ones((x.nrows(), width));
    }
    let middle = w.linear(&format!("{name}.fc1.weight"), x).mapv(silu);
    let gate = w.linear(&format!("{name}.fc2.weight"), &middle);
    seen.see(name, gate.view());
    gate.mapv(silu)
}
