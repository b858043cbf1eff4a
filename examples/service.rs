//! A small service: one system prompt, read once; each request goes on from a fork of its state.
//!
//! A line of standard input is a request, its answer a line of output. What a real service adds (HTTP, a queue, a
//! batch) goes around `answer`; `Model` is `Send`, so a worker thread can own it.
//!
//!     densessm export --model tests/checkpoints/densemamba-tiny --out bundle
//!     echo "JULIET:" | cargo run --release --example service -- bundle

use anyhow::{Context, Result};
use densessm::{
    Bundle, Device, GenerateOptions, GenerationConfig, Model, Progress, Prompt, Sampling, Tokenizer, generate, runtime,
};
use std::{
    io::{BufRead, Write, stdin, stdout},
    path::PathBuf,
};

const SYSTEM_PROMPT: &str =
    "KING RICHARD:\nNow is the winter of our discontent\nMade glorious summer by this sun of York;\n\n";

fn main() -> Result<()> {
    let path: PathBuf = std::env::args_os().nth(1).context("usage: service BUNDLE")?.into();
    let bundle = Bundle::open(&path)?;
    let tokenizer = Tokenizer::open(bundle.dir())?;
    let mut model = runtime::load(&bundle, runtime::Choice::Auto, Device::CPU)?;
    eprintln!("serving on {}", model.info());

    // With 0 tokens asked for, the prompt is read and nothing else.
    let reading = GenerateOptions { max_new_tokens: 0, ..GenerateOptions::default() };
    let mut generation = generate(&mut *model, &tokenizer, Prompt::text(SYSTEM_PROMPT), reading)?;
    generation.by_ref().try_for_each(|piece| piece.map(drop))?;
    let system = generation.into_progress();

    let options = GenerateOptions {
        max_new_tokens: 40,
        sampling: Sampling { temperature: 0.8, top_k: 40, top_p: 1.0, seed: 0 },
        stop: vec!["\n\n".to_owned()],
        ..GenerationConfig::open(bundle.dir())?.options()
    };
    for request in stdin().lock().lines() {
        answer(&mut *model, &tokenizer, &system, &request?, &options)?;
    }
    Ok(())
}

/// Goes on from a fork of the system prompt's state, which stays as it is for the next request.
fn answer(
    model: &mut dyn Model,
    tokenizer: &Tokenizer,
    system: &Progress,
    request: &str,
    options: &GenerateOptions,
) -> Result<()> {
    let prompt = Prompt::text(format!("{request}\n")).after(system.fork()?);
    for piece in generate(model, tokenizer, prompt, options.clone())? {
        print!("{}", piece?.text);
        stdout().flush()?;
    }
    println!();
    Ok(())
}
