//! What `--version` prints: the version, SIMD level, cargo features and runtimes.

use crate::commands::runtimes;
use densessm_kernels::Level;
use std::fmt::Write;

/// The cargo features that change what the command can do.
const FEATURES: [(&str, bool); 2] = [("ort", cfg!(feature = "ort")), ("tract", cfg!(feature = "tract"))];

/// Returns the lines that `--version` prints.
pub(crate) fn long() -> String {
    let mut text = format!("densessm {}\n", env!("CARGO_PKG_VERSION"));
    let features: Vec<&str> = FEATURES.into_iter().filter_map(|(name, on)| on.then_some(name)).collect();
    let features = if features.is_empty() { "none".to_owned() } else { features.join(", ") };
    let _ = writeln!(text, "kernels:  {}", Level::best());
    let _ = writeln!(text, "features: {features}");
    for availability in runtimes::on_cpu() {
        let _ = writeln!(text, "runtime:  {availability}");
    }
    text
}
