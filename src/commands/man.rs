//! `densessm man`

use crate::{cli, terminal::outln};
use anyhow::{Context, Result};
use clap::CommandFactory;
use std::fs;

pub(crate) fn run(arguments: &cli::Man) -> Result<()> {
    let folder = &arguments.out;
    fs::create_dir_all(folder)
        .and_then(|()| clap_mangen::generate_to(cli::Cli::command(), folder))
        .with_context(|| folder.display().to_string())?;
    outln!("{}: try `man -l {}`", folder.display(), folder.join("densessm.1").display());
    Ok(())
}
