//! `densessm parity`

use super::CheckFailed;
use crate::{
    cli, interrupt,
    terminal::{self, outln},
};
use anyhow::{Context, Result};
use densessm::{
    Bundle, Checkpoint, TextPosition, Tokenizer,
    parity::{self, ParityOptions},
    report::Format,
};
use std::{ops::ControlFlow, sync::atomic::Ordering};

pub(crate) fn run(arguments: &cli::Parity) -> Result<()> {
    // An unknown format is an error before anything is compared.
    arguments.report.as_deref().map(Format::of).transpose()?;
    let stopped = interrupt::watch()?;
    let bundle = Bundle::open(&arguments.bundle)?;
    let reference = parity::reference(&Checkpoint::open(&arguments.model)?)?;
    let mut options = ParityOptions::new(tokens(arguments, &bundle)?);
    options.new_tokens = arguments.new_tokens;
    options.drift = arguments.drift;
    options.by_layer = arguments.report.is_some();
    options.runtimes = arguments.runtimes.iter().map(|&runtime| runtime.into()).collect();
    options.device = arguments.device;
    options.threads = arguments.threads;
    options.cuda_graph = !arguments.gpu.no_cuda_graph;
    options.operator_fallback = arguments.gpu.allow_operator_fallback;
    options.shape_profile = arguments.gpu.shape_profile();
    let bar = terminal::spinner();
    let compilation = terminal::Compilation::show_in(&bar);
    let checked = parity::check(&bundle, &reference, &options, &mut |next| {
        bar.set_message(next.to_owned());
        if stopped.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    drop(compilation);
    let checked = checked?;
    let report = checked.report()?;
    outln!("{}", if arguments.json { report.json() } else { report.text(terminal::width()) }.trim_end());
    if let Some(path) = &arguments.report {
        report.save(path)?;
    }
    if checked.passed { Ok(()) } else { Err(CheckFailed("parity").into()) }
}

/// The beginning of the text, or pseudo-random tokens.
fn tokens(arguments: &cli::Parity, bundle: &Bundle) -> Result<Vec<i64>> {
    let count = arguments.prompt_tokens;
    if let Some(path) = &arguments.text {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let tokens = Tokenizer::open(bundle.dir())?.encode(&text, TextPosition::Start)?;
        return Ok(tokens.into_iter().take(count).map(i64::from).collect());
    }
    let vocabulary = bundle.architecture().vocab_size() as u64;
    let mut state = 1_u64;
    Ok((0..count)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 33) % vocabulary) as i64
        })
        .collect())
}
