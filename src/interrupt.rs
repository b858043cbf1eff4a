//! Ctrl-C as a flag: work stops after the current step and keeps its results so far.

use anyhow::Context;
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

/// Starts watching for Ctrl-C and returns the flag that it sets. A second Ctrl-C ends the process at once.
pub(crate) fn watch() -> anyhow::Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    let set = Arc::clone(&flag);
    ctrlc::set_handler(move || {
        if set.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
    })
    .context("watching for Ctrl-C")?;
    Ok(flag)
}
