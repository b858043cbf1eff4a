//! `densessm init`

use crate::{
    cli, interrupt,
    terminal::{self, outln},
};
use anyhow::Result;
use densessm::init;
use serde_json::json;
use std::{ops::ControlFlow, sync::atomic::Ordering};

pub(crate) fn run(arguments: &cli::Init) -> Result<()> {
    let stopped = interrupt::watch()?;
    let bar = terminal::step_bar("drawing weights");
    let made = init(arguments.preset, &arguments.out, arguments.seed, arguments.force, |done, total| {
        terminal::advance(&bar, done as u64, total as u64);
        if stopped.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    bar.finish_and_clear();
    let made = made?;
    if arguments.json {
        let report = json!({
            "checkpoint": arguments.out, "preset": arguments.preset.name(), "seed": arguments.seed,
            "parameters": made.parameters, "architecture": made.architecture,
        });
        outln!("{report:#}");
    } else {
        let (out, parameters) = (arguments.out.display(), terminal::scaled(made.parameters as f64, ""));
        outln!("{out}: {} with {parameters} random parameters, seed {}", arguments.preset.name(), arguments.seed);
    }
    Ok(())
}
