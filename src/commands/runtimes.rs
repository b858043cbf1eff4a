//! Descriptions of the runtimes and whether they can be used.

use densessm::{
    Device, RuntimeInfo,
    error::SessionError,
    runtime::{self, Choice},
};
use std::fmt;

/// A runtime on a device.
pub(crate) struct Availability {
    pub(crate) runtime: Choice,
    pub(crate) device: Device,
    pub(crate) info: Result<RuntimeInfo, SessionError>,
}

impl Availability {
    /// Finds out whether a runtime can be used on a device.
    pub(crate) fn of(runtime: Choice, device: Device) -> Self {
        Self { runtime, device, info: runtime::availability(runtime, device) }
    }
}

impl fmt::Display for Availability {
    /// Writes the version and origin of the runtime, or why it cannot be used and what to do.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.info {
            Ok(RuntimeInfo { runtime, version, library: Some(library), .. }) => {
                write!(f, "{runtime} {version} at {}", library.display())
            }
            Ok(RuntimeInfo { runtime, version, .. }) => write!(f, "{runtime} {version}, built in"),
            Err(error) => error.fmt(f),
        }
    }
}

/// Returns every runtime on the processor.
pub(crate) fn on_cpu() -> impl Iterator<Item = Availability> {
    runtime::ALL.into_iter().map(|runtime| Availability::of(runtime, Device::CPU))
}
