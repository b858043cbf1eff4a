//! Falcon-Mamba (arXiv 2410.05355, based on Mamba, arXiv 2312.00752, section 3; Transformers' `FalconMambaForCausalLM`).

use crate::{
    Error, Real, State, Tensors,
    blocks::rms_norm,
    config::number_or,
    mamba::{Dimensions, biased, read_out},
    trace::ChunkTrace,
};
use ndarray::{Array1, Array2, Axis};
use serde_json::Value;

/// The dimensions.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) mamba: Dimensions,
    /// Epsilon of the norms inside a layer.
    mixer_eps: f64,
}

impl Config {
    pub(crate) fn new(config: &Value, weights: &Tensors) -> Result<Self, Error> {
        Ok(Self { mamba: Dimensions::new(config, weights)?, mixer_eps: number_or(config, "mixer_rms_eps", 1e-6) })
    }

    /// Logits of a chunk: `[tokens] -> [tokens, V]`.
    pub(crate) fn chunk<F: Real>(
        &self,
        w: &Tensors,
        tokens: &[i64],
        state: &mut State<F>,
        seen: &mut ChunkTrace<'_, F>,
    ) -> Array2<F> {
        self.mamba.chunk(w, tokens, seen, |l, x, seen| self.mixer(w, l, x, state, seen))
    }

    fn mixer<F: Real>(
        &self,
        w: &Tensors,
        l: usize,
        x: &Array2<F>,
        state: &mut State<F>,
        seen: &mut ChunkTrace<'_, F>,
    ) -> Array2<F> {
        let p = format!("backbone.layers.{l}.mixer");

        // [u, z] = split(x Winᵀ);  u = silu(causal_conv(u) + bias);  [δ, b, c] = split(u Wxᵀ), each normed
        let uz = biased(w, &format!("{p}.in_proj"), x);
        let (u, z) = uz.view().split_at(Axis(1), self.mamba.channels);
        let u = self.mamba.conv(w, l, u, state, seen);
        let [delta, b, c] = self.mamba.x_proj(w, &p, &u, seen);
        let mut norm = |name: &str, x: Array2<F>| {
            let normed = rms_norm(&x, &Array1::ones(x.ncols()), self.mixer_eps);
            seen.see(&format!("{p}.{name}"), normed.view());
            normed
        };
        let (delta, b, c) = (norm("delta_norm", delta), norm("b_norm", b), norm("c_norm", c));
        let h = self.mamba.hidden(w, &p, [&delta, &u, &b], state.get(l, "recurrent_state"), seen);
        read_out(w, &p, &h, [&c, &u], z, seen)
    }
}
