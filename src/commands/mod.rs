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

use crate::{
    cli::{Command, RuntimeArgs},
    terminal,
};
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

/// Loads graphs of a bundle as the arguments say. Prints to stderr which runtime was chosen if the choice was `auto`, and
/// on a GPU, how the nodes of this project's operators are executed.
fn load(bundle: &Bundle, graphs: Vec<GraphKind>, on: &RuntimeArgs) -> Result<Box<dyn Model>> {
    let options = LoadOptions::for_bundle(bundle)
        .with_graphs(graphs)
        .with_device(on.device)
        .with_threads(on.threads)
        .with_cuda_graph(!on.gpu.no_cuda_graph)
        .with_operator_fallback(on.gpu.allow_operator_fallback)
        .with_shape_profile(on.gpu.shape_profile());
    let compilation = terminal::Compilation::show();
    let model = runtime::load_with(bundle, on.runtime.into(), &options);
    drop(compilation);
    let model = model?;
    let info = model.info();
    if runtime::Choice::from(on.runtime) == runtime::Choice::Auto {
        eprintln!("running on {info}");
    }
    if !on.device.is_cpu() {
        info.placement.iter().for_each(|placement| eprintln!("{placement}"));
    }
    Ok(model)
}
