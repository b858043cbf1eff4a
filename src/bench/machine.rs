//! A description of the machine, as far as the system provides one.

use serde::Serialize;
use std::{env::consts, fs, num::NonZero, thread};

/// The machine that a measurement ran on.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// Operating system and instruction set.
    pub system: String,
    /// Model of the processor, where the system reports it.
    pub cpu: Option<String>,
    /// Number of processors that this process may use.
    pub cores: usize,
}

impl Machine {
    /// Describes this machine.
    pub fn here() -> Self {
        let cpu = fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| {
            let model = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
            model.map(|(_, name)| name.trim().to_owned())
        });
        let cores = thread::available_parallelism().map_or(1, NonZero::get);
        Self { system: format!("{} {}", consts::OS, consts::ARCH), cpu, cores }
    }
}

/// Returns the peak resident memory of this process since its start or the last [`forget_peak`], in bytes, where the
/// system reports it.
pub(super) fn peak_resident_bytes() -> Option<u64> {
    kilobytes("/proc/self/status", "VmHWM:")
}

/// Resets the peak of resident memory; returns whether the system can do that.
pub(super) fn forget_peak() -> bool {
    fs::write("/proc/self/clear_refs", "5").is_ok()
}

/// Returns the available memory in bytes, where the system reports it.
pub(super) fn available_bytes() -> Option<u64> {
    kilobytes("/proc/meminfo", "MemAvailable:")
}

fn kilobytes(path: &str, name: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix(name))?;
    value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|count| count * 1024)
}
