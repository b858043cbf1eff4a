//! `densessm eval`

use super::{CheckFailed, load};
use crate::{
    cli, interrupt,
    terminal::{self, outln},
};
use anyhow::{Context, Result};
use densessm::{
    Bundle, Tokenizer,
    eval::{self, EvalOptions, TokenizedText},
    report::Format,
};
use std::{fs, ops::ControlFlow, sync::atomic::Ordering};

pub(crate) fn run(arguments: &cli::Eval) -> Result<()> {
    // An unknown format is an error before anything is measured.
    arguments.report.as_deref().map(Format::of).transpose()?;
    let stopped = interrupt::watch()?;
    let bundle = Bundle::open(&arguments.bundle)?;
    let text = fs::read_to_string(&arguments.text).with_context(|| arguments.text.display().to_string())?;
    let mut text = TokenizedText::new(&Tokenizer::open(bundle.dir())?, &text)?;
    text.truncate(arguments.max_tokens.unwrap_or(usize::MAX));
    let graphs = bundle.manifest().graphs.iter().map(|graph| graph.kind).collect();
    let mut model = load(&bundle, graphs, &arguments.on)?;

    let mut options = EvalOptions::new(arguments.window);
    options.stride = arguments.stride.unwrap_or(arguments.window);
    options.batch = arguments.batch;
    let bar = terminal::step_bar("evaluating");
    let measured = eval::measure(&mut *model, &text, &options, &mut |done, total| {
        terminal::advance(&bar, done as u64, total as u64);
        if stopped.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    bar.finish_and_clear();
    let measured = measured?;
    let report = measured.report()?;
    outln!("{}", if arguments.json { report.json() } else { report.text(terminal::width()) }.trim_end());
    if let Some(path) = &arguments.report {
        report.save(path)?;
    }
    match arguments.threshold {
        // A perplexity that is not a number does not pass.
        Some(threshold) if measured.perplexity > threshold || measured.perplexity.is_nan() => {
            Err(CheckFailed("perplexity").into())
        }
        _ => Ok(()),
    }
}
