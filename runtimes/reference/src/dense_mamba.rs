//! DenseMamba (arXiv 2403.00818, section 3.3, over Mamba, arXiv 2312.00752, section 3), plain Mamba without neighbours.

use crate::{
    Error, Real, State, Tensors,
    blocks::{rms_norm, silu, softplus},
    config::{count, count_or, flag_or, number_or},
    trace::ChunkTrace,
};
use ndarray::{Array2, Array3, ArrayView2, Axis, Ix2, Zip, s};
use serde_json::Value;
use std::collections::VecDeque;

/// Tokens whose hidden states are held at once.
pub(crate) const CHUNK: usize = 64;

/// The dimensions.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    layers: usize,
    vocabulary: usize,
    hidden: usize,
    /// D: channels.
    channels: usize,
    /// N: states of a channel.
    states: usize,
    /// K: taps of the convolution.
    taps: usize,
    /// R: width of the step sizes' projection.
    rank: usize,
    eps: f64,
    tied: bool,
    /// m: how many layers below are read.
    dense: usize,
    table: String,
}

/// The hidden states of a layer after each token of a chunk: `[tokens, D, N]`.
type Hidden<F> = Array3<F>;

impl Config {
    pub(crate) fn new(config: &Value, weights: &Tensors) -> Result<Self, Error> {
        let hidden = count(config, "hidden_size")?;
        let channels = count_or(config, "intermediate_size", count_or(config, "expand", 2) * hidden);
        let rank = match config.get("time_step_rank").and_then(Value::as_u64) {
            Some(rank) => rank as usize,
            None => hidden.div_ceil(16), // "auto"
        };
        let plain = config["model_type"] == "mamba";
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
            dense: if plain { 0 } else { count_or(config, "dense_block_layers", 2) },
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

    pub(crate) fn vocabulary(&self) -> usize {
        self.vocabulary
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

    /// Logits of a chunk: `[tokens] -> [tokens, V]`.
    pub(crate) fn chunk<F: Real>(
        &self,
        w: &Tensors,
        tokens: &[i64],
        state: &mut State<F>,
        seen: &mut ChunkTrace<'_, F>,
    ) -> Array2<F> {
        let mut x = w.rows::<F>(&self.table, tokens);
        seen.see("backbone.embeddings", x.view());
        let mut neighbours: VecDeque<Hidden<F>> = VecDeque::new(); // nearest first
        for l in 0..self.layers {
            let layer = format!("backbone.layers.{l}");
            let normed = rms_norm(&x, &w.vector(&format!("{layer}.norm.weight")), self.eps);
            seen.see(&format!("{layer}.norm"), normed.view());
            let (out, hidden) = self.mixer(w, l, &normed, &neighbours, state, seen);
            x += &out;
            seen.see(&layer, x.view());
            neighbours.push_front(hidden);
            neighbours.truncate(self.dense);
        }
        let x = rms_norm(&x, &w.vector("backbone.norm_f.weight"), self.eps);
        seen.see("backbone.norm_f", x.view());
        w.linear(if self.tied { &self.table } else { "lm_head.weight" }, &x)
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
        let Self { channels: d, states: n, rank: r, .. } = *self;
        let p = format!("backbone.layers.{l}.mixer");
        let biased = |name: &str, x: &Array2<F>| {
            let y = w.linear(&format!("{p}.{name}.weight"), x);
            let bias = format!("{p}.{name}.bias");
            if w.has(&bias) { y + &w.vector(&bias) } else { y }
        };

        // [u, z] = split(x Winᵀ);  u = silu(causal_conv(u) + bias)
        let uz = biased("in_proj", x);
        let (u, z) = uz.view().split_at(Axis(1), d);
        let u = self.conv(w, l, u, state).mapv(silu);
        seen.see(&format!("{p}.conv1d"), u.view());

        // [δ, b, c] = split(u Wxᵀ);  Δ = softplus(δ Wdtᵀ + dt_bias);  a = -exp(A_log)
        let dbc = w.linear(&format!("{p}.x_proj.weight"), &u);
        seen.see(&format!("{p}.x_proj"), dbc.view());
        let (delta, bc) = dbc.view().split_at(Axis(1), r);
        let (b, c) = bc.split_at(Axis(1), n);
        let delta = w.linear(&format!("{p}.dt_proj.weight"), &delta.to_owned());
        seen.see(&format!("{p}.dt_proj"), delta.view());
        let delta = (delta + &w.vector(&format!("{p}.dt_proj.bias"))).mapv(softplus);
        let a = w.all::<F>(&format!("{p}.A_log")).mapv(|a| -a.exp());
        let a = a.into_dimensionality::<Ix2>().unwrap_or_else(|_| Array2::zeros((d, n)));

        // h_t = exp(Δ_t a) ∘ h_{t-1} + (Δ_t u_t) b_tᵀ
        let h = hidden_states(&delta, &a, &u, b, state.get(l, "recurrent_state"));

        // ĥ_t = h_t + G_t ∘ Σ_i P_i(h_t of layer l-i)
        let mut fused = h.clone();
        if !neighbours.is_empty() {
            let channel = self.gate(w, &format!("{p}.dense.channel_gate"), x, d, seen);
            let state = self.gate(w, &format!("{p}.dense.state_gate"), x, n, seen);
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

        // y_t = ĥ_t c_t + D ∘ u_t;  out = (y ∘ silu(z)) Woutᵀ
        let skip = w.vector::<F>(&format!("{p}.D"));
        let mut y = Array2::zeros((x.nrows(), d));
        for (t, mut y) in y.outer_iter_mut().enumerate() {
            let read = fused.index_axis(Axis(0), t).dot(&c.row(t));
            Zip::from(&mut y)
                .and(&read)
                .and(&skip)
                .and(u.row(t))
                .and(z.row(t))
                .for_each(|y, &read, &skip, &u, &z| *y = (read + skip * u) * silu(z));
        }
        seen.see(&format!("{p}.scan"), y.view());
        let out = biased("out_proj", &y);
        seen.see(&format!("{p}.out_proj"), out.view());
        (out, h)
    }

    /// `Σ_k w_k ∘ u_{t-K+1+k} + bias`, the last K-1 inputs being carried.
    fn conv<F: Real>(&self, w: &Tensors, l: usize, u: ArrayView2<'_, F>, state: &mut State<F>) -> Array2<F> {
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
        Array2::from_shape_fn(u.dim(), |(t, d)| {
            let sum: F = (0..self.taps).map(|k| weight[[d, 0, k]] * window[[t + k, d]]).sum();
            sum + bias.as_ref().map_or(F::zero(), |bias| bias[d])
        })
    }

    /// `silu(W₂ silu(W₁ x))`; 1 if there is no such gate.
    fn gate<F: Real>(
        &self,
        w: &Tensors,
        name: &str,
        x: &Array2<F>,
        width: usize,
        seen: &mut ChunkTrace<'_, F>,
    ) -> Array2<F> {
        if !w.has(&format!("{name}.fc1.weight")) {
            return Array2::ones((x.nrows(), width));
        }
        let middle = w.linear(&format!("{name}.fc1.weight"), x).mapv(silu);
        let gate = w.linear(&format!("{name}.fc2.weight"), &middle);
        seen.see(name, gate.view());
        gate.mapv(silu)
    }
}

/// All hidden states of a chunk, `h_t = exp(Δ_t a) ∘ h_{t-1} + (Δ_t u_t) b_tᵀ`, and the last one handed on.
///
/// Turns `h -> decay ∘ h + input` are put together in pairs, pairs of pairs and so on, all tokens at once.
fn hidden_states<F: Real>(
    delta: &Array2<F>,
    a: &Array2<F>,
    u: &Array2<F>,
    b: ArrayView2<'_, F>,
    state: &mut ndarray::ArrayD<F>,
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
