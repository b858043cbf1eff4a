//! The presets of `init`: a file for each family's sizes.

mod dense_mamba;
mod dense_retnet;
mod falcon_mamba;
mod mamba;

use crate::random::Initial;
use serde_json::Value;
use std::str::FromStr;

/// A model of a size that the papers report, or one that is small enough for tests.
#[derive(Clone, Copy)]
pub struct Preset {
    name: &'static str,
    /// `config.json`.
    pub(crate) config: fn() -> Value,
    /// What a tensor starts as in training, where that is not random.
    pub(crate) initial: fn(&str) -> Option<Initial>,
}

const FAMILIES: [&[Preset]; 3] = [&dense_mamba::PRESETS, &dense_retnet::PRESETS, &falcon_mamba::PRESETS];

impl Preset {
    /// Every preset.
    pub fn all() -> impl Iterator<Item = Self> {
        FAMILIES.into_iter().flatten().copied()
    }

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        self.name
    }
}

impl std::fmt::Debug for Preset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Preset").field(&self.name).finish()
    }
}

impl PartialEq for Preset {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Preset {}

/// The error of a name that no preset has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a preset, one of {}, got `{name}`", names())]
pub struct UnknownPreset {
    name: String,
}

fn names() -> String {
    Preset::all().map(Preset::name).collect::<Vec<_>>().join(", ")
}

impl FromStr for Preset {
    type Err = UnknownPreset;

    /// The preset of a name.
    fn from_str(name: &str) -> Result<Self, UnknownPreset> {
        Self::all().find(|preset| preset.name == name).ok_or_else(|| UnknownPreset { name: name.to_owned() })
    }
}
