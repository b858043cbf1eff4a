//! `densessm completions`

use crate::{cli, terminal};
use anyhow::Result;
use clap::CommandFactory;

pub(crate) fn run(arguments: &cli::Completions) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut cli::Cli::command(), "densessm", &mut script);
    terminal::print(&String::from_utf8(script)?)
}
