//! Which runtime runs a model: its identity, version and device.

use crate::{Device, GraphPlacement};
use std::{fmt, path::PathBuf};

/// Identifies a runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RuntimeId {
    /// ONNX Runtime.
    Ort,
    /// tract.
    Tract,
    /// A runtime of another crate, by its name.
    Other(&'static str),
}

impl RuntimeId {
    /// Returns the name on the command line and in reports: `ort` or `tract`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ort => "ort",
            Self::Tract => "tract",
            Self::Other(name) => name,
        }
    }
}

impl fmt::Display for RuntimeId {
    /// Writes the name that prose uses: `ONNX Runtime` or `tract`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ort => "ONNX Runtime",
            other => other.name(),
        })
    }
}

/// The version of a runtime: `major.minor.patch`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// The major version.
    pub major: u32,
    /// The minor version.
    pub minor: u32,
    /// The patch level.
    pub patch: u32,
}

impl Version {
    /// Makes a version of its three numbers.
    pub const fn new(major: u32, minor: u32, patch: u32) -> Self {
        Self { major, minor, patch }
    }

    /// Reads the numbers at the beginning of a text such as `1.22.0` or `1.23.0-dev`; absent ones are 0. Returns nothing
    /// if the text does not begin with a number.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('.').map(|part| {
            let digits = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
            part[..digits].parse().ok()
        });
        let major = parts.next()??;
        let mut next = || parts.next().flatten().unwrap_or(0);
        let minor = next();
        Some(Self { major, minor, patch: next() })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// A runtime that can be used: which one, in which version, on what device, and from where it was loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RuntimeInfo {
    /// The runtime.
    pub runtime: RuntimeId,
    /// Its version.
    pub version: Version,
    /// The device.
    pub device: Device,
    /// The shared library that holds the runtime; absent if the runtime is compiled in.
    pub library: Option<PathBuf>,
    /// How the runtime executes the nodes of this project's operators, for each graph that it has loaded; empty before a
    /// bundle is loaded, or if the runtime does not say.
    pub placement: Vec<GraphPlacement>,
}

impl RuntimeInfo {
    /// Describes a runtime that is compiled in.
    pub const fn new(runtime: RuntimeId, version: Version, device: Device) -> Self {
        Self { runtime, version, device, library: None, placement: Vec::new() }
    }

    /// Describes a runtime that was loaded from a shared library.
    pub fn from_library(runtime: RuntimeId, version: Version, device: Device, library: PathBuf) -> Self {
        Self { library: Some(library), ..Self::new(runtime, version, device) }
    }

    /// Adds how the nodes of the loaded graphs are executed.
    pub fn with_placement(mut self, placement: impl Into<Vec<GraphPlacement>>) -> Self {
        self.placement = placement.into();
        self
    }
}

impl fmt::Display for RuntimeInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} on {}", self.runtime, self.version, self.device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_far_as_they_are_numbers() {
        for (text, version) in [
            ("1.22.0", Some(Version::new(1, 22, 0))),
            ("1.23.1-dev", Some(Version::new(1, 23, 1))),
            ("2.0.0rc1+cu13.7", Some(Version::new(2, 0, 0))),
            ("1.22", Some(Version::new(1, 22, 0))),
            ("1", Some(Version::new(1, 0, 0))),
            ("", None),
            ("main", None),
            ("99999999999.0", None),
        ] {
            assert_eq!(Version::parse(text), version, "{text}");
        }
        assert!(Version::new(1, 9, 3) < Version::new(1, 22, 0));
    }

    #[test]
    fn a_runtime_is_described_in_prose() {
        let info = RuntimeInfo::new(RuntimeId::Ort, Version::new(1, 22, 0), Device::cuda(1));
        assert_eq!(info.to_string(), "ONNX Runtime 1.22.0 on cuda:1");
    }
}
