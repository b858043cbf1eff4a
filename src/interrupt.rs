//! Ctrl-C as a flag: work ends at its next step, with what was made, instead of in the middle of it.

use anyhow::Context;
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

/// Watches for Ctrl-C from now on. A second one ends the process at once.
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
