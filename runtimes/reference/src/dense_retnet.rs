//! DenseRetNet (arXiv 2403.00818, section 3.2; reference file `modeling_dense_gau_retnet.py`).

use crate::{
    Error, Real, State, Tensors,
    blocks::{rms_norm, rms_norm_of, silu},
    config::{count, count_or, flag_or, number_or},
    trace::ChunkTrace,
};
use ndarray::{Array2, ArrayD, Axis, Ix2, s};
use serde_json::Value;
use std::collections::VecDeque;

/// Tokens of one square matrix of decays.
pub(crate) const CHUNK: usize = 256;
/// The fields of `config.json` that no other family has.
pub(crate) const OWN_FIELDS: [&str; 3] = ["query_key_dim", "v_factor", "dense_block_layers"];

/// The dimensions.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    layers: usize,
    pub(crate) vocabulary: usize,
    hidden: usize,
    /// H.
    heads: usize,
    /// Q: keys of all heads together.
    keys: usize,
    /// E: values of all heads together.
    values: usize,
    eps: f64,
    tied: bool,
    /// m: how many layers below are read.
    dense: usize,
}

/// Keys and values of a layer as the layers above read them: before its own dense connections and rotation.
type KeyValue<F> = (Array2<F>, Array2<F>);

impl Config {
    pub(crate) fn new(config: &Value, weights: &Tensors) -> Result<Self, Error> {
        let hidden = count(config, "hidden_size")?;
        let own = Self {
            layers: count(config, "num_hidden_layers")?,
            vocabulary: count(config, "vocab_size")?,
            hidden,
            heads: count(config, "num_attention_heads")?,
            keys: count(config, "query_key_dim")?,
            values: (number_or(config, "v_factor", 2.0) * hidden as f64).round() as usize,
            eps: number_or(config, "rms_norm_eps", 1e-6),
            tied: flag_or(config, "tie_word_embeddings", false),
            dense: count_or(config, "dense_block_layers", 1),
        };
        own.check(weights)?;
        Ok(own)
    }

    fn check(&self, w: &Tensors) -> Result<(), Error> {
        let Self { hidden, keys, values, heads, .. } = *self;
        if !keys.is_multiple_of(2 * heads) || !values.is_multiple_of(heads) {
            let problem = format!("expected heads that divide {keys} in pairs and {values}, got {heads}");
            return Err(Error::new("config.json: num_attention_heads", problem));
        }
        w.expect("model.embed_tokens.weight", &[self.vocabulary, hidden])?;
        w.expect("model.norm.weight", &[hidden])?;
        if !self.tied {
            w.expect("lm_head.weight", &[self.vocabulary, hidden])?;
        }
        for l in 0..self.layers {
            w.expect(&format!("model.layers.{l}.input_layernorm.weight"), &[hidden])?;
            let p = format!("model.layers.{l}.self_attn");
            for (name, shape) in [
                ("q_proj", &[keys, hidden][..]),
                ("k_proj", &[keys, hidden]),
                ("to_hidden.0", &[2 * values, hidden]),
                ("to_out.0", &[hidden, values]),
                ("group_norm", &[values / heads]),
            ] {
                w.expect(&format!("{p}.{name}.weight"), shape)?;
            }
            if l > 0 {
                w.expect(&format!("{p}.k_norm.weight"), &[keys])?;
                w.expect(&format!("{p}.v_norm.weight"), &[values])?;
            }
        }
        Ok(())
    }

    /// Names and shapes of the states.
    pub(crate) fn states(&self) -> Vec<(String, Vec<usize>)> {
        let shape = [self.heads, self.keys / self.heads, self.values / self.heads];
        (0..self.layers).map(|l| (format!("past_key_values.{l}.recurrent_state"), shape.to_vec())).collect()
    }

    /// Logits of a chunk: `[tokens] -> [tokens, V]`.
    pub(crate) fn chunk<F: Real>(
        &self,
        w: &Tensors,
        tokens: &[i64],
        state: &mut State<F>,
        seen: &mut ChunkTrace<'_, F>,
    ) -> Array2<F> {
        let mut x = w.rows::<F>("model.embed_tokens.weight", tokens);
        seen.see("model.embed_tokens", x.view());
        let mut neighbours: VecDeque<KeyValue<F>> = VecDeque::new(); // nearest first
        for l in 0..self.layers {
            let layer = format!("model.layers.{l}");
            let normed = rms_norm(&x, &w.vector(&format!("{layer}.input_layernorm.weight")), self.eps);
            seen.see(&format!("{layer}.input_layernorm"), normed.view());
            let (out, own) = self.retention(w, l, &normed, &neighbours, state, seen);
            x += &out;
            seen.see(&layer, x.view());
            neighbours.push_front(own);
            neighbours.truncate(self.dense);
        }
        let x = rms_norm(&x, &w.vector("model.norm.weight"), self.eps);
        seen.see("model.norm", x.view());
        w.linear(if self.tied { "model.embed_tokens.weight" } else { "lm_head.weight" }, &x)
    }

    fn retention<F: Real>(
        &self,
        w: &Tensors,
        l: usize,
        x: &Array2<F>,
        neighbours: &VecDeque<KeyValue<F>>,
        state: &mut State<F>,
        seen: &mut ChunkTrace<'_, F>,
    ) -> (Array2<F>, KeyValue<F>) {
        let Self { heads, keys, values, eps, .. } = *self;
        let (dk, dv) = (keys / heads, values / heads);
        let p = format!("model.layers.{l}.self_attn");
        let linear = |name: &str, x: &Array2<F>| w.linear(&format!("{p}.{name}.weight"), x);

        // q = silu(x Wqᵀ);  k = silu(x Wkᵀ) dk^(-1/2);  [v, g] = split(silu(x Whᵀ))
        let q = linear("q_proj", x).mapv(silu);
        let k = linear("k_proj", x).mapv(|x| silu(x) * F::of((dk as f64).powf(-0.5)));
        let vg = linear("to_hidden.0", x).mapv(silu);
        let (v, g) = vg.view().split_at(Axis(1), values);
        let own = (k.clone(), v.to_owned());
        seen.see(&format!("{p}.q_proj"), q.view());
        seen.see(&format!("{p}.k_proj"), k.view());
        seen.see(&format!("{p}.to_hidden.0"), vg.view());

        // k ← RMSNorm_k(k + gk ∘ Σ k_j);  v ← RMSNorm_v(v + gv ∘ Σ v_j)
        let mut fuse = |own: Array2<F>, select: &str, norm: &str, of: fn(&KeyValue<F>) -> &Array2<F>| {
            let mut fused = own;
            if !neighbours.is_empty() {
                let middle = linear(&format!("{select}.fc1"), x).mapv(silu);
                let gate = linear(&format!("{select}.fc2"), &middle);
                seen.see(&format!("{p}.{select}.fc2"), gate.view());
                let sum = neighbours.iter().map(of).fold(Array2::zeros(fused.dim()), |sum, x| sum + x);
                fused += &(gate.mapv(silu) * sum);
            }
            let fused = rms_norm(&fused, &w.vector(&format!("{p}.{norm}.weight")), eps);
            seen.see(&format!("{p}.{norm}"), fused.view());
            fused
        };
        let (k, v) = match l {
            0 => (k, v.to_owned()),
            _ => (fuse(k, "k_select", "k_norm", |n| &n.0), fuse(v.to_owned(), "v_select", "v_norm", |n| &n.1)),
        };

        let (q, k) = (self.rotate(&q, state.position), self.rotate(&k, state.position));
        let norm = w.vector::<F>(&format!("{p}.group_norm.weight"));
        let mut o = Array2::zeros((x.nrows(), values));
        for h in 0..heads {
            let (of_keys, of_values) = (s![.., h * dk..(h + 1) * dk], s![.., h * dv..(h + 1) * dv]);
            let (q, k, v) = (q.slice(of_keys).to_owned(), k.slice(of_keys).to_owned(), v.slice(of_values).to_owned());
            let position = state.position;
            let mut o = o.slice_mut(of_values);
            o.assign(&head(&q, &k, &v, state.get(l, "recurrent_state"), h));
            for (t, mut o) in o.outer_iter_mut().enumerate() {
                // o_t / sqrt(s_t);  then the norm of the head
                let s = normaliser(h, position + t as i64);
                o.mapv_inplace(|o| o / F::of(s.sqrt()));
                rms_norm_of(o, &norm, eps);
            }
        }
        o *= &g;
        seen.see(&format!("{p}.retention"), o.view());
        let out = linear("to_out.0", &o);
        seen.see(&format!("{p}.to_out.0"), out.view());
        (out, own)
    }

    /// Rotates the pairs (2j, 2j+1) of each head by `p θ_j`, `θ_j = 10000^(-j/(dk/2 - 1))`.
    fn rotate<F: Real>(&self, x: &Array2<F>, position: i64) -> Array2<F> {
        let dk = self.keys / self.heads;
        let last = (dk / 2).saturating_sub(1).max(1) as f64;
        let mut rotated = x.clone();
        for (t, mut row) in rotated.outer_iter_mut().enumerate() {
            for pair in 0..self.keys / 2 {
                let theta = 10000_f64.powf(-((pair % (dk / 2)) as f64) / last);
                let (sin, cos) = ((position + t as i64) as f64 * theta).sin_cos();
                let (a, b) = (row[2 * pair].wide(), row[2 * pair + 1].wide());
                row[2 * pair] = F::of(a * cos - b * sin);
                row[2 * pair + 1] = F::of(b * cos + a * sin);
            }
        }
        rotated
    }
}

/// `1 - γ_h = 2^(-5-h)`.
fn gap(h: usize) -> f64 {
    (-5.0 - h as f64).exp2()
}

/// `γ_h^n`, precise where `γ_h` itself rounds to 1.
fn power(h: usize, n: f64) -> f64 {
    (n * (-gap(h)).ln_1p()).exp()
}

/// `s_t = Σ_{i=0..t} γ_h^i = (1 - γ_h^(t+1)) / (1 - γ_h)`.
fn normaliser(h: usize, t: i64) -> f64 {
    let (n, gap) = ((t + 1) as f64, gap(h));
    // All terms are 1 to the last digit; the quotient would end up as 0/0.
    if n * gap < f64::EPSILON / 4.0 { n } else { -(n * (-gap).ln_1p()).exp_m1() / gap }
}

/// One head over a chunk: `((q kᵀ) ∘ D) v + γ^(i+1) q_i S`, and `S ← γ^T S + Σ_i γ^(T-1-i) k_iᵀ v_i`.
fn head<F: Real>(q: &Array2<F>, k: &Array2<F>, v: &Array2<F>, states: &mut ArrayD<F>, h: usize) -> Array2<F> {
    let tokens = q.nrows();
    let power = |exponent: usize| F::of(power(h, exponent as f64));
    let mut state = states.index_axis_mut(Axis(0), h);
    let carried = state.view().into_dimensionality::<Ix2>().map_or_else(|_| Array2::zeros((0, 0)), |s| s.to_owned());

    let decay = Array2::from_shape_fn((tokens, tokens), |(i, j)| if i >= j { power(i - j) } else { F::zero() });
    let mut o = (q.dot(&k.t()) * decay).dot(v);
    let mut reached = q.dot(&carried);
    for (i, mut row) in reached.outer_iter_mut().enumerate() {
        row *= power(i + 1);
    }
    o += &reached;

    let mut remaining = k.clone();
    for (i, mut row) in remaining.outer_iter_mut().enumerate() {
        row *= power(tokens - 1 - i);
    }
    state.assign(&(carried * power(tokens) + remaining.t().dot(v)).into_dyn());
    o
}

#[cfg(test)]
mod tests {
    use super::{gap, normaliser};

    /// The sum itself, term by term. Of each term only what it lacks of 1 is added up, which no rounding can hide.
    #[test]
    fn the_normaliser_is_the_sum_that_it_stands_for_in_every_head() {
        for h in [0, 1, 7, 20, 47, 48, 49, 50, 63, 200, 2000] {
            // γ^i = 1 - lost_i, where lost_{i+1} = lost_i + (1 - lost_i) 2^(-5-h).
            let (mut lost, mut lost_sum) = (0.0_f64, 0.0_f64);
            for t in 0..5000_i64 {
                lost_sum += lost;
                let expected = (t + 1) as f64 - lost_sum;
                let got = normaliser(h, t);
                assert!((got / expected - 1.0).abs() < 1e-12, "head {h}, t = {t}: expected {expected}, got {got}");
                lost += (1.0 - lost) * gap(h);
            }
        }
    }
}
