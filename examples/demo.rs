//! The main job, start to end, with nothing installed: a trained checkpoint of this repository is exported, its two
//! graphs are run on tract and compared, and it writes some Shakespeare.
//!
//!     cargo run --release -p densessm-examples

use anyhow::{Result, ensure};
use densessm::{
    Bundle, Checkpoint, Device, ExportOptions, GenerationConfig, Prompt, TokenBatch, Tokenizer, export, generate,
    proto::LogitsMode, runtime,
};
use std::{
    io::{Write, stdout},
    ops::ControlFlow,
    path::Path,
};

const PROMPT: &str = "KING RICHARD:\n";

fn main() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for name in ["densemamba-tiny", "denseretnet-tiny"] {
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/checkpoints").join(name);
        show(name, &model, &folder.path().join(name))?;
    }
    Ok(())
}

fn show(name: &str, model: &Path, out: &Path) -> Result<()> {
    let checkpoint = Checkpoint::open(model)?;
    let options = ExportOptions::default().with_logits(LogitsMode::All);
    let exported = export(&checkpoint, out, &options, |_| ControlFlow::Continue(()))?;
    println!("{name}: exported");
    for file in &exported.manifest.files {
        println!("  {:<24} {:>9} bytes", file.name, file.size);
    }

    let bundle = Bundle::open(out)?;
    let mut model = runtime::load(&bundle, runtime::Choice::Tract, Device::CPU)?;
    println!("  loaded on {}", model.info());

    // Prefill of the whole prompt, then the same tokens one by one: the logits must agree.
    let tokenizer = Tokenizer::open(bundle.dir())?;
    let text = "KING RICHARD:\nNow is the winter of our discontent\nMade glorious summer by this sun of York;\n";
    let ids: Vec<i64> = tokenizer.encode(text, densessm::TextPosition::Start)?.into_iter().map(i64::from).collect();
    let mut states = model.initial_states(1)?;
    let prefill = model.prefill(&TokenBatch::new(&ids, &[ids.len()])?, &mut states)?;
    let (vocabulary, parallel) = (prefill.vocabulary, prefill.values.to_vec());
    let mut states = model.initial_states(1)?;
    let (mut difference, mut largest) = (0_f32, 0_f32);
    for (id, expected) in ids.iter().zip(parallel.chunks(vocabulary)) {
        let step = model.step(&[*id], &mut states)?;
        for (a, b) in step.values.iter().zip(expected) {
            difference = difference.max((a - b).abs());
            largest = largest.max(b.abs());
        }
    }
    println!("  {} tokens at once and one by one: logits differ by {difference:.1e} of {largest:.1}", ids.len());
    ensure!(difference <= 2e-4 + 3e-4 * largest, "{name}: the parallel and the recurrent graph disagree");

    println!("  states of a sequence: {} bytes, whatever its length", bundle.manifest().state_bytes_per_sequence);
    println!();
    let options = GenerationConfig::open(bundle.dir())?.options().with_max_new_tokens(80);
    let mut generation = generate(&mut *model, &tokenizer, Prompt::text(PROMPT), options)?;
    print!("{PROMPT}");
    for piece in generation.by_ref() {
        print!("{}", piece?.text);
        stdout().flush()?;
    }
    let speed = generation.statistics().decode_tokens_per_second().unwrap_or(0.0);
    println!("\n\n  ({speed:.0} tokens/s)\n");
    Ok(())
}
