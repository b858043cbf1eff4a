//! `densessm bench`

use super::load;
use crate::{
    cli, interrupt,
    terminal::{self, outln},
};
use anyhow::Result;
use densessm::{
    Bundle,
    bench::{self, BenchPlan},
    report::Format,
};
use std::{ops::ControlFlow, sync::atomic::Ordering, time::Instant};

pub(crate) fn run(arguments: &cli::Bench) -> Result<()> {
    // An unknown format is an error before the measurement, not after it.
    arguments.report.as_deref().map(Format::of).transpose()?;
    let stopped = interrupt::watch()?;
    let bundle = Bundle::open(&arguments.bundle)?;
    let graphs = bundle.manifest().graphs.iter().map(|graph| graph.kind).collect();
    let begin = Instant::now();
    let mut model = load(&bundle, graphs, &arguments.on)?;
    let load_time = begin.elapsed();

    let plan = BenchPlan::default()
        .with_prompt_tokens(arguments.prompt_tokens.as_slice())
        .with_new_tokens(arguments.new_tokens)
        .with_batches(arguments.batch.as_slice())
        .with_threads(arguments.on.threads)
        .with_date(format!("{:.0}", jiff::Timestamp::now()));
    let bar = terminal::step_bar("measuring");
    let measured = bench::measure(&mut *model, &plan, load_time, &mut |done, total| {
        terminal::advance(&bar, done as u64, total as u64);
        if stopped.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    bar.finish_and_clear();
    let report = measured?.report()?;
    // Printed first, so that a report that cannot be saved is not lost.
    outln!("{}", if arguments.json { report.json() } else { report.text(terminal::width()) }.trim_end());
    if let Some(path) = &arguments.report {
        report.save(path)?;
    }
    Ok(())
}
