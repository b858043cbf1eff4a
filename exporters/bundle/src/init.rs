//! `init`: a checkpoint with random weights, for benchmarks and tests.
//!
//! Which tensors it holds is derived from the model's own graph, so it always has those that `export` asks for.

use crate::{Error, Preset, folder::Folder, random::Random, weights::hex};
use densessm_checkpoint::config;
use densessm_graph::Part;
use densessm_models::GraphOptions;
use densessm_proto::{Architecture, GraphKind};
use sha2::{Digest, Sha256};
use std::{
    cell::Cell,
    fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
};

const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";

/// The result of [`init`]: a checkpoint with random weights.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Initialized {
    /// Its folder.
    pub path: PathBuf,
    /// Its dimensions.
    pub architecture: Architecture,
    /// Number of parameters.
    pub parameters: u64,
    /// SHA-256 of its configuration and seed, for naming it in reports.
    pub digest: String,
}

/// Writes a checkpoint with random weights: `config.json` and an fp32 `model.safetensors`.
///
/// The same preset and seed give the same bytes on every machine. Projections are uniform with variance 1/fan-in;
/// norms, skips, decay rates and step sizes start as in training, so that the states neither die out nor grow.
///
/// `progress` is told how many of how many tensors are written; if it breaks, this ends with [`Error::Stopped`].
///
/// # Errors
/// When the target exists already (unless `force` replaces it) or a file cannot be written. Nothing is left then.
///
/// # Examples
/// ```
/// use densessm_bundle::{Preset, init};
/// use std::ops::ControlFlow;
///
/// let folder = tempfile::tempdir()?;
/// let preset: Preset = "mamba-tiny".parse()?;
/// let made = init(preset, &folder.path().join("model"), 0, false, |_, _| ControlFlow::Continue(()))?;
/// assert!(made.path.join("model.safetensors").is_file());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn init(
    preset: Preset,
    out: &Path,
    seed: u64,
    force: bool,
    progress: impl Fn(usize, usize) -> ControlFlow<()>,
) -> Result<Initialized, Error> {
    let config = (preset.config)();
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
        let initial = (preset.initial)(&weight.name);
        let random = Random { weight, initial, seed, tell: &progress, stopped: &stopped, done, total };
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_have_the_sizes_they_are_named_for() {
        for preset in Preset::all() {
            let (_, size) = preset.name().rsplit_once('-').unwrap();
            let expected = match size.split_at(size.len() - 1) {
                (millions, "m") => millions.parse::<f64>().unwrap() * 1e6,
                (billions, "b") => billions.parse::<f64>().unwrap() * 1e9,
                _ => {
                    assert_eq!(size, "tiny");
                    continue;
                }
            };
            let architecture = config::parse(&(preset.config)(), &|_| None).unwrap();
            let model = densessm_models::graph(&architecture, GraphKind::Recurrent, GraphOptions::default()).unwrap();
            let parts = model.weights().flat_map(|weight| &weight.parts);
            let count: usize = parts.map(|part| part.shape.iter().product::<usize>()).sum();
            assert!((0.9..1.15).contains(&(count as f64 / expected)), "{}: {count} parameters", preset.name());
        }
    }
}
