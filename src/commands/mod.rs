//! The commands: each takes its arguments, calls the library and prints the result.

mod bench;
mod completions;
mod doctor;
mod eval;
mod export;
mod generate;
mod init;
mod inspect;
mod man;
mod parity;
mod run;
pub(crate) mod runtimes;
#[cfg(feature = "serve")]
pub(crate) mod serve;

use crate::cli::{Command, RuntimeArgs};
use anyhow::Result;
use densessm::{Bundle, LoadOptions, Model, proto::GraphKind, runtime};

/// A check failed; the command has printed its result.
#[derive(Debug, thiserror::Error)]
#[error("{0}: check failed")]
pub(crate) struct CheckFailed(pub(crate) &'static str);

/// Runs a command.
pub(crate) fn run(command: Command) -> Result<()> {
    match command {
        Command::Export(arguments) => export::run(&arguments),
        Command::Generate(arguments) => generate::run(&arguments),
        Command::Run(arguments) => run::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
        #[cfg(feature = "serve")]
        Command::Serve(arguments) => serve::run(&arguments),
        Command::Eval(arguments) => eval::run(&arguments),
        Command::Parity(arguments) => parity::run(&arguments),
        Command::Inspect(arguments) => inspect::run(&arguments),
        Command::Init(arguments) => init::run(&arguments),
        Command::Doctor(arguments) => doctor::run(&arguments),
        Command::Completions(arguments) => completions::run(&arguments),
        Command::Man(arguments) => man::run(&arguments),
    }
}

/// Loads graphs of a bundle as the arguments say; with `auto`, prints which runtime was chosen.
fn load(bundle: &Bundle, graphs: Vec<GraphKind>, on: &RuntimeArgs) -> Result<Box<dyn Model>> {
    let options = LoadOptions::for_bundle(bundle).with_graphs(graphs).with_device(on.device).with_threads(on.threads);
    let model = runtime::load_with(bundle, on.runtime.into(), &options)?;
    if runtime::Choice::from(on.runtime) == runtime::Choice::Auto {
        eprintln!("running on {}", model.info());
    }
    Ok(model)
}
