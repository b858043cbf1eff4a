//! `densessm generate`

use super::load;
use crate::terminal::outln;
use crate::{cli, interrupt};
use anyhow::{Context, Result, bail};
use densessm::{
    Bundle, FinishReason, Generation, GenerationConfig, Prompt, RuntimeInfo, Sampling, SavedSequence, Snapshot,
    Tokenizer, generate, resume,
};
use serde_json::json;
use std::{
    io::{self, Write},
    path::Path,
};

pub(crate) fn run(arguments: &cli::Generate) -> Result<()> {
    let cancel = interrupt::watch()?;
    let bundle = Bundle::open(&arguments.bundle)?;
    let tokenizer = Tokenizer::open(bundle.dir())?;
    let prompt = prompt(arguments)?;
    let snapshot = arguments.load_state.as_deref().map(|path| saved(path, &bundle)).transpose()?;
    let options = GenerationConfig::open(bundle.dir())?
        .options()
        .with_max_new_tokens(arguments.max_new_tokens)
        .with_sampling(sampling(arguments))
        .with_stop(&arguments.stop);

    let graphs = bundle.manifest().graphs.iter().map(|graph| graph.kind).collect();
    let mut model = load(&bundle, graphs, &arguments.on)?;
    let info = model.info().clone();
    let saved = snapshot.map(|snapshot| SavedSequence::restore(&mut *model, &snapshot)).transpose()?;
    let generation = match (prompt.map(Prompt::text), saved) {
        (prompt, Some(saved)) => resume(&mut *model, &tokenizer, saved, prompt, options)?,
        (Some(prompt), None) => generate(&mut *model, &tokenizer, prompt, options)?,
        (None, None) => bail!("prompt: none given; pass --prompt or --prompt-file, or continue with --load-state"),
    };

    let mut generation = generation.cancelled_by(cancel);
    if arguments.json {
        report(&mut generation, arguments, &info)?
    } else {
        stream(&mut generation)?
    }
    match &arguments.save_state {
        Some(path) => Ok(generation.into_saved().snapshot()?.save(path)?),
        None => Ok(()),
    }
}

fn prompt(arguments: &cli::Generate) -> Result<Option<String>> {
    match (&arguments.prompt.prompt, &arguments.prompt.prompt_file) {
        (Some(text), _) => Ok(Some(text.clone())),
        (None, Some(path)) => Ok(Some(std::fs::read_to_string(path).with_context(|| path.display().to_string())?)),
        (None, None) => Ok(None),
    }
}

/// Returns greedy decoding unless a sampling option is given; the temperature is then 1 by default.
fn sampling(arguments: &cli::Generate) -> Sampling {
    let cli::Generate { temperature, top_k, top_p, seed, .. } = arguments;
    if temperature.is_none() && top_k.is_none() && top_p.is_none() && seed.is_none() {
        return Sampling::GREEDY;
    }
    Sampling::new(temperature.unwrap_or(1.0))
        .with_top_k(top_k.unwrap_or(0))
        .with_top_p(top_p.unwrap_or(1.0))
        .with_seed(seed.unwrap_or(0))
}

/// Prints each piece as it is generated.
fn stream(generation: &mut Generation<'_>) -> Result<()> {
    let mut out = io::stdout().lock();
    for piece in generation {
        out.write_all(piece?.text.as_bytes())?;
        out.flush()?;
    }
    writeln!(out)?;
    Ok(())
}

/// Prints text, tokens and timings as JSON.
fn report(generation: &mut Generation<'_>, arguments: &cli::Generate, info: &RuntimeInfo) -> Result<()> {
    let (mut text, mut tokens, mut finish) = (String::new(), Vec::new(), None);
    for piece in generation.by_ref() {
        let piece = piece?;
        text.push_str(&piece.text);
        tokens.extend(piece.token);
        finish = piece.finish;
    }
    let statistics = generation.statistics();
    let report = json!({
        "bundle": arguments.bundle, "runtime": info.runtime.name(), "device": info.device.to_string(),
        "placement": info.placement, "text": text, "token_ids": tokens, "finish": finish.map(FinishReason::name),
        "prompt_tokens": statistics.prompt_tokens, "new_tokens": statistics.new_tokens,
        "time_to_first_token_seconds": statistics.time_to_first_token.map(|time| time.as_secs_f64()),
        "decode_tokens_per_second": statistics.decode_tokens_per_second(),
    });
    outln!("{report:#}");
    Ok(())
}

fn saved(path: &Path, bundle: &Bundle) -> Result<Snapshot> {
    let snapshot = Snapshot::load(path)?;
    snapshot.check(bundle).with_context(|| path.display().to_string())?;
    Ok(snapshot)
}
