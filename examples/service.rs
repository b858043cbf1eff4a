//! A small service: one system prompt is read once, and each request continues a fork of its states.
//!
//! Each line of standard input is a request, and its answer is written to standard output. A real service adds HTTP and
//! a queue around `answer`. To serve many requests in one batch, it drives several `Sequence`s and joins their `States`.
//! `Model` and `Sequence` are `Send`, so a worker thread can own them.
//!
//!     densessm export --model tests/checkpoints/densemamba-tiny --out bundle
//!     echo "JULIET:" | cargo run --release -p densessm-examples --bin service -- bundle

use anyhow::{Context, Result};
use densessm::{
    Bundle, Device, GenerateOptions, GenerationConfig, Model, Prompt, Sampling, SavedSequence, Tokenizer, generate,
    resume, runtime,
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

    // With 0 tokens to generate, the prompt is read and nothing else.
    let reading = GenerateOptions::default().with_max_new_tokens(0);
    let mut generation = generate(&mut *model, &tokenizer, Prompt::text(SYSTEM_PROMPT), reading)?;
    generation.read_to_end()?;
    let system = generation.into_saved();

    let options = GenerationConfig::open(bundle.dir())?
        .options()
        .with_max_new_tokens(40)
        .with_sampling(Sampling::new(0.8).with_top_k(40))
        .with_stop(["\n\n"]);
    for request in stdin().lock().lines() {
        answer(&mut *model, &tokenizer, &system, &request?, &options)?;
    }
    Ok(())
}

/// Continues a fork of the system prompt's states, which stay as they are for the next request.
fn answer(
    model: &mut dyn Model,
    tokenizer: &Tokenizer,
    system: &SavedSequence,
    request: &str,
    options: &GenerateOptions,
) -> Result<()> {
    let prompt = Prompt::text(format!("{request}\n"));
    for piece in resume(model, tokenizer, system.fork()?, Some(prompt), options.clone())? {
        print!("{}", piece?.text);
        stdout().flush()?;
    }
    println!();
    Ok(())
}
