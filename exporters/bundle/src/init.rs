//! `init`: a checkpoint with random weights, for benchmarks and tests.
//!
//! Which tensors it holds is read off the model's own graph, so it cannot fall behind what `export` asks for.

use crate::{Error, folder::Folder, weights::hex};
use densessm_checkpoint::config;
use densessm_graph::Part;
use densessm_models::GraphOptions;
use densessm_proto::{Architecture, GraphKind};
use rand::{RngExt, SeedableRng, rngs::ChaCha12Rng};
use safetensors::{Dtype, View};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::{
    borrow::Cow,
    cell::Cell,
    fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
};

const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";

/// Models of the sizes that the paper and its peers report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preset {
    /// DenseMamba, 360 million parameters, m = 2.
    DenseMamba360m,
    /// DenseMamba, 1.3 billion parameters, m = 2.
    DenseMamba1300m,
    /// Plain Mamba, 370 million parameters.
    Mamba370m,
    /// DenseRetNet, 350 million parameters, m = 2.
    DenseRetNet350m,
    /// DenseRetNet, 1.3 billion parameters, m = 2.
    DenseRetNet1300m,
}

impl Preset {
    /// Every preset.
    pub const ALL: [Self; 5] =
        [Self::DenseMamba360m, Self::DenseMamba1300m, Self::Mamba370m, Self::DenseRetNet350m, Self::DenseRetNet1300m];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::DenseMamba360m => "densemamba-360m",
            Self::DenseMamba1300m => "densemamba-1.3b",
            Self::Mamba370m => "mamba-370m",
            Self::DenseRetNet350m => "denseretnet-350m",
            Self::DenseRetNet1300m => "denseretnet-1.3b",
        }
    }

    /// Its `config.json`.
    fn config(self) -> Value {
        let mamba = |vocab_size: usize, hidden_size: usize, layers: usize| {
            json!({
                "model_type": "mamba", "architectures": ["MambaForCausalLM"], "vocab_size": vocab_size,
                "hidden_size": hidden_size, "num_hidden_layers": layers, "state_size": 16, "conv_kernel": 4,
                "expand": 2, "intermediate_size": 2 * hidden_size, "time_step_rank": "auto", "use_bias": false,
                "use_conv_bias": true, "hidden_act": "silu", "layer_norm_epsilon": 1e-5,
                "tie_word_embeddings": true, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
            })
        };
        let dense_mamba = |hidden_size: usize| {
            let mut config = mamba(32000, hidden_size, 50);
            config["model_type"] = json!("dense_mamba");
            config["architectures"] = json!(["DenseMambaForCausalLM"]);
            config["dense_block_layers"] = json!(2);
            config["dense_gate"] = json!(["channel", "state"]);
            config["dense_gate_reduction"] = json!(16);
            config["dense_projection"] = json!("identity");
            config
        };
        let dense_retnet = |hidden: usize, layers: usize, heads: usize, query_key: usize, k: usize, v: usize| {
            json!({
                "model_type": "DenseGauRetNet", "architectures": ["DenseGauRetNetForCausalLM"], "vocab_size": 32001,
                "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
                "query_key_dim": query_key, "v_factor": 2, "intermediate_k_select_scale": k,
                "intermediate_v_select_scale": v, "dense_block_layers": 2, "rms_norm_eps": 1e-6,
                "hidden_act": "silu", "deepnorm": false, "tie_word_embeddings": false, "bos_token_id": 1,
                "eos_token_id": 2, "pad_token_id": 0,
            })
        };
        match self {
            Self::DenseMamba360m => dense_mamba(1024),
            Self::DenseMamba1300m => dense_mamba(2048),
            Self::Mamba370m => mamba(50280, 1024, 48),
            Self::DenseRetNet350m => dense_retnet(1536, 16, 2, 768, 8, 32),
            Self::DenseRetNet1300m => dense_retnet(2560, 25, 4, 1280, 16, 8),
        }
    }
}

/// A checkpoint just made.
#[derive(Clone, Debug)]
pub struct Initialized {
    /// Its folder.
    pub path: PathBuf,
    /// Its dimensions.
    pub architecture: Architecture,
    /// Number of parameters.
    pub parameters: u64,
    /// SHA-256 of its weights' layout and seed, for naming it in reports.
    pub digest: String,
}

/// Writes a checkpoint with random weights: `config.json` and an fp32 `model.safetensors`.
///
/// The same preset and seed give the same bytes on every machine. Projections are uniform with variance 1/fan-in;
/// norms, skips, decay rates and step sizes start as in training (arXiv 2312.00752, section 3.6), so that the states
/// neither die nor grow.
///
/// `progress` is told how many of how many tensors are done; if it breaks, this ends with [`Error::Stopped`].
///
/// # Errors
/// When the target is there already (unless `force` replaces it) or a file cannot be written. Nothing is left then.
pub fn init(
    preset: Preset,
    out: &Path,
    seed: u64,
    force: bool,
    progress: impl Fn(usize, usize) -> ControlFlow<()>,
) -> Result<Initialized, Error> {
    let config = preset.config();
    let architecture = config::parse(&config, &|_| None)?;
    let model = densessm_models::graph(&architecture, GraphKind::Recurrent, GraphOptions::default())?;
    let mut weights: Vec<&Part> = model.weights().flat_map(|weight| &weight.parts).collect();
    weights.sort_by(|a, b| a.name.cmp(&b.name));

    let folder = Folder::create(out, CONFIG, force)?;
    let path = folder.path().join(CONFIG);
    let text =
        serde_json::to_vec_pretty(&config).map_err(|error| Error::Io { path: path.clone(), error: error.into() })?;
    fs::write(&path, &text).map_err(Error::io(&path))?;

    let total = weights.len();
    let stopped = Cell::new(false);
    let tensors = weights.iter().enumerate().map(|(done, weight)| {
        let random = Random { weight, seed, tell: &progress, stopped: &stopped, done, total };
        (weight.name.clone(), random)
    });
    let path = folder.path().join(WEIGHTS);
    safetensors::serialize_to_file(tensors, None, &path).map_err(|error| match error {
        safetensors::SafeTensorError::IoError(error) => Error::Io { path: path.clone(), error },
        other => Error::Io { path: path.clone(), error: std::io::Error::other(other) },
    })?;
    if stopped.get() {
        return Err(Error::Stopped);
    }
    // The crate writes through a temporary file that only its owner may read.
    let config_permissions = fs::metadata(folder.path().join(CONFIG)).map_err(Error::io(&path))?.permissions();
    fs::set_permissions(&path, config_permissions).map_err(Error::io(&path))?;
    let digest = hex(&Sha256::digest([&text, seed.to_le_bytes().as_slice()].concat()));
    let parameters = weights.iter().map(|weight| weight.shape.iter().product::<usize>() as u64).sum();
    Ok(Initialized { path: folder.publish()?, architecture, parameters, digest })
}

/// A tensor that is made when it is written.
struct Random<'a, F> {
    weight: &'a Part,
    seed: u64,
    tell: &'a F,
    stopped: &'a Cell<bool>,
    done: usize,
    total: usize,
}

impl<F: Fn(usize, usize) -> ControlFlow<()>> Random<'_, F> {
    fn values(&self) -> Vec<f32> {
        let shape = &self.weight.shape;
        let elements: usize = shape.iter().product();
        let mut generator = generator(self.seed, &self.weight.name);
        let mut uniform = |scale: f32| -> Vec<f32> {
            (0..elements).map(|_| (generator.random::<f32>() * 2.0 - 1.0) * scale).collect()
        };
        let name = self.weight.name.as_str();
        match shape.as_slice() {
            _ if name.ends_with(".A_log") => {
                let states = shape[1];
                (0..elements).map(|i| ((i % states + 1) as f32).ln()).collect()
            }
            // The inverse softplus of step sizes spread evenly in the logarithm over 0.001 … 0.1.
            _ if name.ends_with("dt_proj.bias") => {
                uniform(1.0).iter().map(|u| (0.01 * 10_f32.powf(*u)).exp_m1().ln()).collect()
            }
            _ if name.ends_with("norm.weight")
                || name.ends_with("norm_f.weight")
                || name.ends_with("layernorm.weight") =>
            {
                vec![1.0; elements]
            }
            _ if name.ends_with(".D") => vec![1.0; elements],
            [_] => uniform(0.02),
            [_, columns @ ..] => uniform((3.0 / columns.iter().product::<usize>() as f32).sqrt()),
            [] => uniform(1.0),
        }
    }
}

/// The tensor's own generator, so that its numbers depend on nothing but seed and name.
fn generator(seed: u64, name: &str) -> ChaCha12Rng {
    let digest = Sha256::digest([&seed.to_le_bytes(), name.as_bytes()].concat());
    ChaCha12Rng::from_seed(digest.into())
}

impl<F: Fn(usize, usize) -> ControlFlow<()>> View for Random<'_, F> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.weight.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        // A view cannot fail: once stopped, zeros are written, which nobody gets to see.
        if self.stopped.get() || (self.tell)(self.done, self.total).is_break() {
            self.stopped.set(true);
            return Cow::Owned(vec![0; self.data_len()]);
        }
        Cow::Owned(self.values().iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    fn data_len(&self) -> usize {
        self.weight.shape.iter().product::<usize>() * size_of::<f32>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weights(preset: Preset) -> Vec<Part> {
        let architecture = config::parse(&preset.config(), &|_| None).unwrap();
        let model = densessm_models::graph(&architecture, GraphKind::Recurrent, GraphOptions::default()).unwrap();
        model.weights().flat_map(|weight| weight.parts.clone()).collect()
    }

    #[test]
    fn presets_have_the_sizes_they_are_named_for() {
        for (preset, millions) in [
            (Preset::DenseMamba360m, 360.0),
            (Preset::DenseMamba1300m, 1300.0),
            (Preset::Mamba370m, 370.0),
            (Preset::DenseRetNet350m, 350.0),
            (Preset::DenseRetNet1300m, 1300.0),
        ] {
            let count: usize = weights(preset).iter().map(|weight| weight.shape.iter().product::<usize>()).sum();
            let ratio = count as f64 / 1e6 / millions;
            assert!((0.9..1.15).contains(&ratio), "{}: {count} parameters", preset.name());
        }
    }

    #[test]
    fn a_tensor_depends_on_seed_and_name_alone() {
        let weights = weights(Preset::Mamba370m);
        let values = |name: &str, seed| {
            let weight = weights.iter().find(|weight| weight.name == name).unwrap();
            let (tell, stopped) = (|_, _| ControlFlow::Continue(()), Cell::new(false));
            Random { weight, seed, tell: &tell, stopped: &stopped, done: 0, total: 1 }.values()
        };
        let (a, b) = ("backbone.layers.0.mixer.x_proj.weight", "backbone.layers.1.mixer.x_proj.weight");
        assert_eq!(values(a, 1), values(a, 1));
        assert_ne!(values(a, 1), values(a, 2));
        assert_ne!(values(a, 1), values(b, 1));
        let projection = values(a, 1);
        let variance = projection.iter().map(|w| f64::from(w * w)).sum::<f64>() / projection.len() as f64;
        assert!((variance * 2048.0 - 1.0).abs() < 0.02, "expected 1 / fan-in, got {variance}");
        let steps = values("backbone.layers.0.mixer.dt_proj.bias", 1);
        let softplus = |x: f32| f64::from(x).exp().ln_1p();
        assert!(steps.iter().all(|&x| (0.000_99..0.101).contains(&softplus(x))), "step sizes out of 0.001 … 0.1");
        let decay = values("backbone.layers.0.mixer.A_log", 1);
        assert_eq!(decay[..2], [0.0, 2_f32.ln()]);
    }
}
