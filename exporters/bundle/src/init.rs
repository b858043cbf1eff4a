//! `init`: a checkpoint with random weights, for benchmarks and tests.
//!
//! Which tensors it holds is derived from the model's own graph, so it always has those that `export` asks for.

use crate::{Error, Preset, folder::Folder, random::Random, weights::hex};
use densessm_checkpoint::config;
use densessm_graph::Part;
use densessm_models::GraphOptions;
use densessm_proto::{Architecture, GraphKind};
use safetensors::{
    Dtype,
    tensor::{Metadata, TensorInfo},
};
use sha2::{Digest, Sha256};
use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
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
/// `progress` is told how many of how many tensors are written, several times for a large tensor; if it breaks, this ends
/// at once with [`Error::Stopped`].
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

    let path = folder.path().join(WEIGHTS);
    let mut file = BufWriter::new(File::create(&path).map_err(Error::io(&path))?);
    file.write_all(&header(&weights).map_err(Error::io(&path))?).map_err(Error::io(&path))?;
    for (done, weight) in weights.iter().enumerate() {
        let random = Random { weight, initial: (preset.initial)(&weight.name), seed };
        random.write(&path, &mut file, || progress(done, weights.len()))?;
    }
    let file = file.into_inner().map_err(|error| Error::io(&path)(error.into_error()))?;
    file.sync_all().map_err(Error::io(&path))?;
    let digest = hex(&Sha256::digest([&text, seed.to_le_bytes().as_slice()].concat()));
    let parameters = weights.iter().map(|weight| weight.shape.iter().product::<usize>() as u64).sum();
    Ok(Initialized { path: folder.publish()?, architecture, parameters, digest })
}

/// The beginning of a safetensors file of fp32 tensors in this order: the header's length and the header.
fn header(weights: &[&Part]) -> io::Result<Vec<u8>> {
    let mut end = 0;
    let tensors = weights.iter().map(|weight| {
        let begin = end;
        end += weight.shape.iter().product::<usize>() * size_of::<f32>();
        let info = TensorInfo { dtype: Dtype::F32, shape: weight.shape.clone(), data_offsets: (begin, end) };
        (weight.name.clone(), info)
    });
    let metadata = Metadata::new(None, tensors.collect()).map_err(io::Error::other)?;
    let mut text = serde_json::to_vec(&metadata)?;
    // The tensors begin at a multiple of eight bytes.
    text.resize(text.len().next_multiple_of(size_of::<u64>()), b' ');
    Ok([&(text.len() as u64).to_le_bytes()[..], &text].concat())
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
