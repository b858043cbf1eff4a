//! The `densessm` command.

#![deny(unsafe_code)]

mod cli;
mod commands;
mod interrupt;
mod terminal;
mod version;

use clap::{Parser, error::ErrorKind};
use std::process::ExitCode;

fn main() -> ExitCode {
    disable_tf32();
    let result = match cli::Cli::try_parse() {
        Ok(cli) => commands::run(cli.command),
        // The long form looks for runtimes, which takes time: only where it was asked for.
        Err(error) if error.kind() == ErrorKind::DisplayVersion && std::env::args_os().any(|a| a == "--version") => {
            terminal::print(&version::long())
        }
        Err(error) => error.exit(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // The reader of the output has closed it, and needs no more.
        Err(error) if terminal::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) if error.is::<commands::CheckFailed>() => {
            eprintln!("{error}");
            ExitCode::from(1)
        }
        Err(error) => {
            eprintln!("error: {}", terminal::one_line(&error));
            ExitCode::from(2)
        }
    }
}

/// Keeps NVIDIA's libraries from rounding the factors of fp32 products, unless the environment says otherwise.
#[cfg(feature = "ort")]
#[allow(unsafe_code)]
fn disable_tf32() {
    // SAFETY: this is the beginning of `main`, and no other thread has been started.
    unsafe { densessm_ort::disable_tf32() };
}

#[cfg(not(feature = "ort"))]
fn disable_tf32() {}
