//! `densessm export`

use super::CheckFailed;
use crate::terminal::outln;
use crate::{cli, interrupt, terminal};
use anyhow::Result;
use densessm::{
    Bundle, Checkpoint, ExportOptions, export,
    parity::{self, Measure, ParityOptions},
    proto::Manifest,
};
use serde_json::json;
use std::{
    ops::ControlFlow,
    path::Path,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

/// Tokens of the prompt with which a bundle is verified.
const VERIFIED_TOKENS: i64 = 16;

pub(crate) fn run(arguments: &cli::Export) -> Result<()> {
    let started = Instant::now();
    let stopped = interrupt::watch()?;
    let checkpoint = Checkpoint::open(&arguments.model)?;
    let mut options = ExportOptions::default();
    if let Some(target) = arguments.target {
        options = options.with_target(target.into());
    }
    if let Some(lowering) = arguments.lowering {
        options = options.with_lowering(lowering.into());
    }
    let options = options
        .with_graphs(arguments.mode.graphs())
        .with_precision(arguments.precision.into())
        .with_logits(arguments.logits.into())
        .with_opset(arguments.opset)
        .with_force(arguments.force);
    let bar = terminal::byte_bar("exporting");
    let exported = export(&checkpoint, &arguments.out, &options, |progress| {
        terminal::advance(&bar, progress.done, progress.total);
        if stopped.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    bar.finish_and_clear();
    let exported = exported?;
    report(&arguments.out, &exported.manifest, started.elapsed(), arguments.json)?;
    if arguments.verify { verify(&checkpoint, &arguments.out) } else { Ok(()) }
}

/// A short form of `densessm parity`. Its result goes to stderr, as stdout contains that of the export.
fn verify(checkpoint: &Checkpoint, out: &Path) -> Result<()> {
    let bundle = Bundle::open(out)?;
    let reference = parity::reference(checkpoint)?;
    let vocabulary = bundle.architecture().vocab_size() as i64;
    let mut options = ParityOptions::new((0..VERIFIED_TOKENS).map(|i| (i * i * 31 + i * 7 + 5) % vocabulary).collect());
    options.new_tokens = 4;
    let checked = parity::check(&bundle, &reference, &options, &mut |_| ControlFlow::Continue(()))?;
    if checked.passed {
        let worst = checked.measures.iter().map(Measure::fraction).fold(0.0, f64::max);
        eprintln!("verified: max error is {:.1} % of tolerance", 100.0 * worst);
        return Ok(());
    }
    eprint!("{}", checked.report()?.text(terminal::width()));
    Err(CheckFailed("comparison of the bundle with its checkpoint").into())
}

fn report(out: &Path, manifest: &Manifest, elapsed: Duration, as_json: bool) -> Result<()> {
    let total: u64 = manifest.files.iter().map(|file| file.size).sum();
    if as_json {
        let report = json!({ "bundle": out, "bytes": total, "seconds": elapsed.as_secs_f64(), "manifest": manifest });
        outln!("{report:#}");
        return Ok(());
    }
    outln!("{} in {:.1} s ({})", out.display(), elapsed.as_secs_f64(), terminal::bytes(total));
    for file in &manifest.files {
        outln!("  {:<24} {:>10}", file.name, terminal::bytes(file.size));
    }
    outln!("  states per sequence      {:>10}", terminal::bytes(manifest.state_bytes_per_sequence));
    Ok(())
}
