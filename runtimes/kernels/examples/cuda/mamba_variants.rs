//! Variants of the step kernel, and the models on which they are measured.
//!
//! `MAMBA_VARIANTS` may name a file with variants of the kernel, one a line: a name, then constants of
//! `mamba_step_shape.cuh` that differ from their defaults, as `more FLIGHT=4 REPLICAS=2`. `SOURCE=file` takes another
//! source.

use super::gpu::Outcome;
use densessm_cuda::Unit;
use densessm_kernels::cuda::{
    Activation,
    units::{self, MambaShape},
};
use std::fmt::Write as _;

const DENSE: MambaShape =
    MambaShape { hidden: 1024, inner: 2048, rank: 64, taps: 4, gate: 64, neighbours: 2, layers: 50, batch: 1 };
const MAMBA: MambaShape = MambaShape { neighbours: 0, layers: 48, ..DENSE };

/// A name and what the source is preceded by, or replaced with.
pub(crate) struct Variant {
    pub(crate) name: String,
    defines: String,
    source: Option<String>,
}

impl Variant {
    fn of_line(line: &str) -> Outcome<Self> {
        let mut words = line.split_whitespace();
        let name = words.next().unwrap_or_default().to_owned();
        let (mut defines, mut source) = (String::new(), None);
        for word in words {
            let (constant, value) =
                word.split_once('=').ok_or_else(|| format!("{line}: expected NAME=VALUE, got {word}"))?;
            if constant == "SOURCE" {
                source = Some(std::fs::read_to_string(value).map_err(|error| format!("{value}: {error}"))?);
            } else {
                let _ = writeln!(defines, "#define {constant} {value}");
            }
        }
        Ok(Self { name, defines, source })
    }

    pub(crate) fn unit(&self, shape: &MambaShape) -> Unit {
        let unit = units::mamba_step(Activation::F16, shape);
        if self.defines.is_empty() && self.source.is_none() {
            return unit;
        }
        let source = format!("{}{}", self.defines, self.source.as_deref().unwrap_or(unit.source()));
        unit.with_source(source.leak())
    }
}

pub(crate) fn variants() -> Outcome<Vec<Variant>> {
    let Some(file) = std::env::var_os("MAMBA_VARIANTS") else { return Ok(vec![Variant::of_line("default")?]) };
    let text = std::fs::read_to_string(&file)?;
    text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#')).map(Variant::of_line).collect()
}

/// Names, sizes, vocabularies and batches.
pub(crate) fn all() -> [(&'static str, MambaShape, usize, Vec<usize>); 4] {
    let few = MambaShape { layers: 4, ..DENSE };
    let plain = MambaShape { layers: 4, ..MAMBA };
    [
        ("densemamba of 4 layers", few, 5000, vec![1, 2, 3, 4, 5, 6, 7, 8]),
        ("mamba of 4 layers", plain, 5003, vec![1, 6]),
        ("densemamba-360m", DENSE, 32000, vec![1, 6, 8]),
        ("mamba-370m", MAMBA, 50280, vec![1, 6, 8]),
    ]
}

/// The units of all of these.
pub(crate) fn units(variants: &[Variant]) -> Vec<Unit> {
    all()
        .iter()
        .flat_map(|(_, shape, _, batches)| batches.iter().map(|&batch| MambaShape { batch, ..*shape }))
        .flat_map(|shape| measured(variants, shape.batch).iter().map(move |variant| variant.unit(&shape)))
        .collect()
}

/// The variants that are measured with this batch: odd ones stand for themselves with the first variant only.
pub(crate) fn measured(variants: &[Variant], batch: usize) -> &[Variant] {
    let count = if batch > 1 && batch % 2 == 1 { 1 } else { variants.len() };
    variants.get(..count).unwrap_or_default()
}
