//! What Mamba's relatives have in common (arXiv 2312.00752, section 3): the backbone, and the equations of a mixer.

use crate::{
    Error, Real, State, Tensors,
    blocks::{rms_norm, silu, softplus},
    config::{count, count_or, flag_or, number_or},
    trace::ChunkTrace,
};
use ndarray::{Array2, Array3, ArrayD, ArrayView2, Axis, Ix2, Zip, s};
use serde_json::Value;

/// Tokens whose hidden states are held at once.
pub(crate) const CHUNK: usize = 64;

/// The dimensions.
#[derive(Clone, Debug)]
pub(crate) struct Dimensions {
    layers: usize,
    pub(crate) vocabulary: usize,
    hidden: usize,
    /// D: channels.
    pub(crate) channels: usize,
    /// N: states of a channel.
    pub(crate) states: usize,
    /// K: taps of the convolution.
    taps: usize,
    /// R: width of the step sizes' projection.
    pub(crate) rank: usize,
    eps: f64,
    tied: bool,
    table: String,
}

/// The hidden states of a layer after each token of a chunk: `[tokens, D, N]`.
pub(crate) type Hidden<F> = Array3<F>;

impl Dimensions {
    pub(crate) fn new(config: &Value, weights: &Tensors) -> Result<Self, Error> {
        let hidden = count(config, "hidden_size")?;
        let channels = count_or(config, "intermediate_size", count_or(config, "expand", 2) * hidden);
        let rank = match config.get("time_step_rank").and_then(Value::as_u64) {
            Some(rank) => rank as usize,
            None => hidden.div_ceil(16), // "auto"
        };
        let new_name = "backbone.embeddings.weight";
        let table = if weights.has(new_name) { new_name } else { "backbone.embedding.weight" };
        let own = Self {
            layers: count(config, "num_hidden_layers")?,
            vocabulary: count(config, "vocab_size")?,
            hidden,
            channels,
            states: count_or(config, "state_size", 16),
            taps: count_or(config, "conv_kernel", 4),
            rank,
            eps: number_or(config, "layer_norm_epsilon", 1e-5),
            tied: flag_or(config, "tie_word_embeddings", true),
            table: table.to_owned(),
        };
        own.check(weights)?;
        Ok(own)
    }

    fn check(&self, w: &Tensors) -> Result<(), Error> {
        let Self { hidden, channels: d, states: n, rank: r, taps: k, .. } = *self;
        w.expect(&self.table, &[self.vocabulary, hidden])?;
        w.expect("backbone.norm_f.weight", &[hidden])?;
        if !self.tied {
            w.expect("lm_head.weight", &[self.vocabulary, hidden])?;
        }
        for l in 0..self.layers {
            w.expect(&format!("backbone.layers.{l}.norm.weight"), &[hidden])?;
            for (name, shape) in [
                ("in_proj.weight", &[2 * d, hidden][..]),
                ("conv1d.weight", &[d, 1, k]),
                ("x_proj.weight", &[r + 2 * n, d]),
                ("dt_proj.weight", &[d, r]),
                ("dt_proj.bias", &[d]),
                ("A_log", &[d, n]),
                ("D", &[d]),
                ("out_proj.weight", &[hidden, d]),
            ] {
                w.expect(&format!("backbone.layers.{l}.mixer.{name}"), shape)?;
            }
        }
        Ok(())
    }

    /// Names and shapes of the states.
    pub(crate) fn states(&self) -> Vec<(String, Vec<usize>)> {
        let of_layer = |l: usize| {
            let conv = (format!("past_key_values.{l}.conv_state"), vec![self.channels, self.taps - 1]);
            let recurrent = (format!("past_key_values.{l}.recurrent_state"), vec![self.channels, self.states]);
            (self.taps > 1).then_some(conv).into_iter().chain([recurrent])
        };
        (0..self.layers).flat_map(of_layer).collect()
    }

    /// Logits of a chunk, `[tokens] -> [tokens, V]`; `mixer` is one layer without its norm and residual.
    pub(crate) fn chunk<'t, F: Real>(
        &self,
        w: &Tensors,
        tokens: &[i64],
        seen: &mut ChunkTrace<'t, F>,
        mut mixer: impl FnMut(usize, &Array2<F>, &mut ChunkTrace<'t, F>) -> Array2<F>,
    ) -> Array2<F> {
        let mut x = w.rows::<F>(&self.table, tokens);
        seen.see("backbone.embeddings", x.view());
        for l in 0..self.layers {
            let layer = format!("backbone.layers.{l}");
            let normed = rms_norm(&x, &w.vector(&format!("{layer}.norm.weight")), self.eps);
            seen.see(&format!("{layer}.norm"), normed.view());
            x += &mixer(l, &normed, seen);
            seen.see(&layer, x.view());
        }
        let x = rms_norm(&x, &w.vector("backbone.norm_f.weight"), self.eps);
        seen.see("backbone.norm_f", x.view());
        w.linear(if self.tied { &self.table } else { "lm_head.weight" }, &x)
    }

    /// `[δ, b, c] = split(u Wxᵀ)`.
    pub(crate) fn x_proj<F: Real>(
        &self,
        w: &Tensors,
        mixer: &str,
        u: &Array2<F>,
        seen: &mut ChunkTrace<'_, F>,
    ) -> [Array2<F>; 3] {
        let all = w.linear(&format!("{mixer}.x_proj.weight"), u);
        seen.see(&format!("{mixer}.x_proj"), all.view());
        let (delta, bc) = all.view().split_at(Axis(1), self.rank);
        let (b, c) = bc.split_at(Axis(1), self.states);
        [delta, b, c].map(|part| part.to_owned())
    }

    /// `h_t = exp(Δ_t a) ∘ h_{t-1} + (Δ_t u_t) b_tᵀ` with `Δ = softplus(δ Wdtᵀ + dt_bias)`, `a = -exp(A_log)`.
    pub(crate) fn hidden<F: Real>(
        &self,
        w: &Tensors,
        mixer: &str,
        [delta, u, b]: [&Array2<F>; 3],
        state: &mut ArrayD<F>,
        seen: &mut ChunkTrace<'_, F>,
    ) -> Hidden<F> {
        let delta = w.linear(&format!("{mixer}.dt_proj.weight"), delta);
        seen.see(&format!("{mixer}.dt_proj"), delta.view());
        let delta = (delta + &w.vector(&format!("{mixer}.dt_proj.bias"))).mapv(softplus);
        let a = w.all::<F>(&format!("{mixer}.A_log")).mapv(|a| -a.exp());
        let a = a.into_dimensionality::<Ix2>().unwrap_or_else(|_| Array2::zeros((self.channels, self.states)));
        hidden_states(&delta, &a, u, b.view(), state)
    }

    /// `silu(causal_conv(u) + bias)`, the convolution being `Σ_k w_k ∘ u_{t-K+1+k}`; the last K-1 inputs are carried.
    pub(crate) fn conv<F: Real>(
        &self,
        w: &Tensors,
        l: usize,
        u: ArrayView2<'_, F>,
        state: &mut State<F>,
        seen: &mut ChunkTrace<'_, F>,
    ) -> Array2<F> {
        let p = format!("backbone.layers.{l}.mixer.conv1d");
        let weight = w.all::<F>(&format!("{p}.weight")); // [D, 1, K]
        let back = self.taps - 1;
        let mut window = Array2::zeros((back + u.nrows(), self.channels));
        window.slice_mut(s![back.., ..]).assign(&u);
        if back > 0 {
            let carried = state.get(l, "conv_state");
            for ((t, d), x) in window.slice_mut(s![..back, ..]).indexed_iter_mut() {
                *x = carried[[d, t]];
            }
            let end = window.nrows() - back;
            for d in 0..self.channels {
                (0..back).for_each(|k| carried[[d, k]] = window[[end + k, d]]);
            }
        }
        let bias = format!("{p}.bias");
        let bias = w.has(&bias).then(|| w.vector::<F>(&bias));
        let u = Array2::from_shape_fn(u.dim(), |(t, d)| {
            let sum: F = (0..self.taps).map(|k| weight[[d, 0, k]] * window[[t + k, d]]).sum();
            silu(sum + bias.as_ref().map_or(F::zero(), |bias| bias[d]))
        });
        seen.see(&p, u.view());
        u
    }
}

/// A module that may have a bias: `x Wᵀ + b`.
pub(crate) fn biased<F: Real>(w: &Tensors, module: &str, x: &Array2<F>) -> Array2<F> {
    let y = w.linear(&format!("{module}.weight"), x);
    let bias = format!("{module}.bias");
    if w.has(&bias) { y + &w.vector(&bias) } else { y }
}

/// `y_t = (ĥ_t c_t + D ∘ u_t) ∘ silu(z_t)`, then `y Woutᵀ`.
pub(crate) fn read_out<F: Real>(
    w: &Tensors,
    mixer: &str,
    fused: &Hidden<F>,
    [c, u]: [&Array2<F>; 2],
    z: ArrayView2<'_, F>,
    seen: &mut ChunkTrace<'_, F>,
) -> Array2<F> {
    let skip = w.vector::<F>(&format!("{mixer}.D"));
    let mut y = Array2::zeros(u.dim());
    for (t, mut y) in y.outer_iter_mut().enumerate() {
        let read = fused.index_axis(Axis(0), t).dot(&c.row(t));
        Zip::from(&mut y)
            .and(&read)
            .and(&skip)
            .and(u.row(t))
            .and(z.row(t))
            .for_each(|y, &read, &skip, &u, &z| *y = (read + skip * u) * silu(z));
    }
    seen.see(&format!("{mixer}.scan"), y.view());
    let out = biased(w, &format!("{mixer}.out_proj"), &y);
    seen.see(&format!("{mixer}.out_proj"), out.view());
    out
}

/// All hidden states of a chunk; the last one becomes the state.
///
/// Steps `h -> decay ∘ h + input` are composed in pairs, pairs of pairs and so on, all tokens at once.
fn hidden_states<F: Real>(
    delta: &Array2<F>,
    a: &Array2<F>,
    u: &Array2<F>,
    b: ArrayView2<'_, F>,
    state: &mut ArrayD<F>,
) -> Hidden<F> {
    let (tokens, (d, n)) = (delta.nrows(), a.dim());
    let mut decay = Array3::from_shape_fn((tokens, d, n), |(t, d, n)| (delta[[t, d]] * a[[d, n]]).exp());
    let mut input = Array3::from_shape_fn((tokens, d, n), |(t, d, n)| delta[[t, d]] * u[[t, d]] * b[[t, n]]);
    let mut span = 1;
    while span < tokens {
        for t in (span..tokens).rev() {
            let (before, decay_before) =
                (input.index_axis(Axis(0), t - span).to_owned(), decay.index_axis(Axis(0), t - span).to_owned());
            let carried = before * decay.index_axis(Axis(0), t);
            let mut input = input.index_axis_mut(Axis(0), t);
            input += &carried;
            let mut decay = decay.index_axis_mut(Axis(0), t);
            decay *= &decay_before;
        }
        span *= 2;
    }
    let start = state.view().into_dimensionality::<Ix2>().map_or_else(|_| Array2::zeros((d, n)), |h| h.to_owned());
    let h = decay * &start + input;
    if tokens > 0 {
        state.assign(&h.index_axis(Axis(0), tokens - 1).into_dyn());
    }
    h
}
