//! `densessm init`

use crate::terminal::say;
use crate::{cli, terminal};
use anyhow::Result;
use densessm::init;
use serde_json::json;

pub(crate) fn run(arguments: &cli::Init) -> Result<()> {
    let bar = terminal::step_bar("drawing weights");
    let made = init(arguments.preset, &arguments.out, arguments.seed, arguments.force, |done, total| {
        terminal::advance(&bar, done as u64, total as u64);
    });
    bar.finish_and_clear();
    let made = made?;
    if arguments.json {
        let report = json!({
            "checkpoint": arguments.out, "preset": arguments.preset.name(), "seed": arguments.seed,
            "parameters": made.parameters, "architecture": made.architecture,
        });
        say!("{report:#}");
    } else {
        let (out, parameters) = (arguments.out.display(), terminal::scaled(made.parameters as f64, ""));
        say!("{out}: {} with {parameters} random parameters, seed {}", arguments.preset.name(), arguments.seed);
    }
    Ok(())
}
