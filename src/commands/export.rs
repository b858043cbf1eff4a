//! `densessm export`

use crate::terminal::say;
use crate::{cli, interrupt, terminal};
use anyhow::Result;
use densessm::{Checkpoint, ExportOptions, export, proto::Manifest};
use serde_json::json;
use std::{
    ops::ControlFlow,
    path::Path,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

pub(crate) fn run(arguments: &cli::Export) -> Result<()> {
    let started = Instant::now();
    let stopped = interrupt::watch()?;
    let checkpoint = Checkpoint::open(&arguments.model)?;
    let options = ExportOptions {
        graphs: arguments.mode.graphs(),
        lowering: arguments.lowering.into(),
        logits: arguments.logits.into(),
        opset: arguments.opset,
        force: arguments.force,
    };
    let bar = terminal::byte_bar("exporting");
    let exported = export(&checkpoint, &arguments.out, &options, |progress| {
        terminal::advance(&bar, progress.done, progress.total);
        if stopped.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    bar.finish_and_clear();
    let exported = exported?;
    report(&arguments.out, &exported.manifest, started.elapsed(), arguments.json)
}

fn report(out: &Path, manifest: &Manifest, elapsed: Duration, as_json: bool) -> Result<()> {
    let total: u64 = manifest.files.iter().map(|file| file.size).sum();
    if as_json {
        let report = json!({ "bundle": out, "bytes": total, "seconds": elapsed.as_secs_f64(), "manifest": manifest });
        say!("{report:#}");
        return Ok(());
    }
    say!("{} in {:.1} s ({})", out.display(), elapsed.as_secs_f64(), terminal::bytes(total));
    for file in &manifest.files {
        say!("  {:<24} {:>10}", file.name, terminal::bytes(file.size));
    }
    say!("  states of a sequence     {:>10}", terminal::bytes(manifest.state_bytes_per_sequence));
    Ok(())
}
