//! The commands: each takes what was said on the command line, calls the library, and reports.

mod bench;
mod doctor;
mod eval;
mod export;
mod generate;
mod init;
mod inspect;
mod parity;
mod run;

use crate::cli::{Command, RuntimeArgs};
use anyhow::Result;
use densessm::{Bundle, LoadOptions, Model, proto::GraphKind, runtime};

/// A check that a command makes was not passed, as it has reported already.
#[derive(Debug, thiserror::Error)]
#[error("{0}: not passed")]
pub(crate) struct CheckFailed(pub(crate) &'static str);

/// Runs a command.
pub(crate) fn run(command: Command) -> Result<()> {
    match command {
        Command::Export(arguments) => export::run(&arguments),
        Command::Generate(arguments) => generate::run(&arguments),
        Command::Run(arguments) => run::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Eval(arguments) => eval::run(&arguments),
        Command::Parity(arguments) => parity::run(&arguments),
        Command::Inspect(arguments) => inspect::run(&arguments),
        Command::Init(arguments) => init::run(&arguments),
        Command::Doctor(arguments) => doctor::run(&arguments),
    }
}

/// Loads graphs of a bundle where the command line says; says itself where that was left open.
fn load(bundle: &Bundle, graphs: Vec<GraphKind>, on: &RuntimeArgs) -> Result<Box<dyn Model>> {
    let options = LoadOptions::for_bundle(bundle).with_graphs(graphs).with_device(on.device).with_threads(on.threads);
    let model = runtime::load_with(bundle, on.runtime.into(), &options)?;
    if runtime::Choice::from(on.runtime) == runtime::Choice::Auto {
        eprintln!("running on {}", model.info());
    }
    Ok(model)
}
