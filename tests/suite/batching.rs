//! Many sequences in one batch, on every runtime and device: they join, are put aside and leave at any step, and each
//! generates the text that it generates alone.
//!
//! Rows move only by `States::join`, `States::select` and `States::swap_remove`, which stay in the memory of the
//! runtime's device. Nothing here takes a snapshot.

use crate::{
    bundles::{exported, trained},
    table::{Row, rows},
};
use densessm::{
    ExportOptions, GenerateOptions, GenerationConfig, Model, Prompt, Sequence, States, TextPosition, TokenBatch,
    Tokenizer, argmax, generate,
    proto::{Lowering, Precision, Tolerance, ToleranceClass},
};
use std::path::Path;

const SEQUENCES: usize = 40;
/// The last sequence arrives shortly before this step.
const STEPS: usize = 200;
/// Steps from one arrival to the next.
const BETWEEN_ARRIVALS: usize = 5;
/// Rows of the batch at most.
const SLOTS: usize = 12;

/// Pseudo-random numbers, the same in every run.
struct Draws(u64);

impl Draws {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit
    }
}

/// A prompt, and what a model generates after it when nothing else is in its batch.
struct Request {
    prompt: Vec<u32>,
    options: GenerateOptions,
    /// Tokens and text that are expected.
    tokens: Vec<u32>,
    text: String,
}

/// Prompts of 1 to 60 tokens from all over a text, to be continued by 20 to 59 tokens.
fn requests(model: &mut dyn Model, tokenizer: &Tokenizer) -> Vec<Request> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/text/shakespeare-heldout.txt");
    let text = std::fs::read_to_string(path).unwrap();
    let ids = tokenizer.encode(&text, TextPosition::Start).unwrap();
    let config = GenerationConfig::open(model.bundle().dir()).unwrap();
    let mut draws = Draws(1);
    let mut request = |_| {
        let (length, new) = (1 + draws.below(60), 20 + draws.below(40));
        let start = draws.below(ids.len() - length);
        let prompt = ids[start..start + length].to_vec();
        let options = config.options().with_max_new_tokens(new);
        let pieces: Vec<_> = generate(model, tokenizer, Prompt::tokens(prompt.clone()), options.clone())
            .unwrap()
            .map(|piece| piece.unwrap())
            .collect();
        let tokens = pieces.iter().filter_map(|piece| piece.token).collect();
        Request { prompt, options, tokens, text: pieces.iter().map(|piece| piece.text.as_str()).collect() }
    };
    (0..SEQUENCES).map(&mut request).collect()
}

/// A sequence between its prompt and its end.
struct Served {
    index: usize,
    sequence: Sequence,
    tokens: Vec<u32>,
    text: String,
}

/// A row whose most likely token in the batch is not the one that the model alone chooses.
struct Divergence {
    sequence: usize,
    /// Tokens after the prompt.
    position: usize,
    batched: u32,
}

impl Served {
    /// Takes a row of logits and returns whether the sequence has ended. Where the batch prefers another token than the
    /// model alone, that is noted, and the sequence follows the model alone.
    fn accept(&mut self, count: usize, scores: &[f32], requests: &[Request], noted: &mut Vec<Divergence>) -> bool {
        let request = &requests[self.index];
        let position = self.tokens.len();
        let last = count == self.sequence.pending().len();
        let expected = request.tokens[position];
        let got = argmax(scores).unwrap() as u32;
        let mut scores = scores.to_vec();
        if last && got != expected {
            noted.push(Divergence { sequence: self.index, position, batched: got });
            scores[expected as usize] = scores[got as usize] + 1.0;
        }
        let Some(piece) = self.sequence.accept(count, &scores).unwrap() else { return false };
        self.tokens.extend(piece.token);
        self.text.push_str(&piece.text);
        piece.finish.is_some()
    }
}

/// The logits of the model alone, in one call, after a prompt and some generated tokens.
fn scores_alone(model: &mut dyn Model, request: &Request, position: usize) -> Vec<f32> {
    let tokens: Vec<i64> =
        request.prompt.iter().chain(&request.tokens[..position]).map(|&token| i64::from(token)).collect();
    let mut states = model.initial_states(1).unwrap();
    let logits = model.prefill(&TokenBatch::new(&tokens, &[tokens.len()]).unwrap(), &mut states).unwrap();
    logits.last(0, tokens.len()).to_vec()
}

/// Serves the requests in one batch and compares each with what the model generates alone. Returns the near-ties.
fn serve(model: &mut dyn Model, tokenizer: &Tokenizer, what: &str) -> Vec<String> {
    let requests = requests(model, tokenizer);
    let mut draws = Draws(2);
    let mut batch = model.initial_states(0).unwrap();
    let mut active: Vec<Served> = Vec::new();
    // What has arrived or was put aside, with states of its own.
    let mut waiting: Vec<(Served, States)> = Vec::new();
    let mut done: Vec<Served> = Vec::new();
    let mut divergences = Vec::new();
    let (mut arrived, mut steps, mut put_aside) = (0, 0, 0);
    while done.len() < SEQUENCES {
        if arrived < SEQUENCES && steps >= arrived * BETWEEN_ARRIVALS {
            let request = &requests[arrived];
            let prompt = Prompt::tokens(request.prompt.clone());
            let sequence = Sequence::new(tokenizer, prompt, request.options.clone()).unwrap();
            let mut served = Served { index: arrived, sequence, tokens: Vec::new(), text: String::new() };
            let mut states = model.initial_states(1).unwrap();
            // The prompt in chunks, with states of its own, up to the first token.
            while served.tokens.is_empty() {
                let tokens = served.sequence.next_tokens(1 + draws.below(20)).to_vec();
                let count = tokens.len();
                let logits = match count {
                    1 => model.step(&tokens, &mut states).unwrap(),
                    _ => model.prefill(&TokenBatch::new(&tokens, &[count]).unwrap(), &mut states).unwrap(),
                };
                let over = served.accept(count, logits.last(0, count), &requests, &mut divergences);
                assert!(!over, "{what}: {arrived} ended with its first token");
            }
            waiting.push((served, states));
            arrived += 1;
        }
        // Some of those that wait join, and now and then a row is put aside.
        for _ in 0..draws.below(3) {
            if !waiting.is_empty() && active.len() < SLOTS {
                let (served, states) = waiting.swap_remove(draws.below(waiting.len()));
                batch.join(&states).unwrap();
                active.push(served);
            }
        }
        if active.len() > 1 && draws.below(4) == 0 {
            let row = draws.below(active.len());
            waiting.push((active.swap_remove(row), batch.select(&[row]).unwrap()));
            batch.swap_remove(row).unwrap();
            put_aside += 1;
        }
        steps += 1;
        if active.is_empty() {
            continue;
        }
        let tokens: Vec<i64> = active.iter().map(|served| served.sequence.next_tokens(1)[0]).collect();
        let logits = model.step(&tokens, &mut batch).unwrap();
        // In descending order, so that the row that replaces a removed one has been handled already.
        for row in (0..active.len()).rev() {
            if active[row].accept(1, logits.at(row, 0), &requests, &mut divergences) {
                batch.swap_remove(row).unwrap();
                done.push(active.swap_remove(row));
            }
        }
        let lengths: Vec<i64> = active.iter().map(|served| served.sequence.consumed() as i64).collect();
        assert_eq!(batch.lengths(), lengths, "{what}: step {steps}");
    }
    assert!(steps >= STEPS, "{what}: over after {steps} steps");
    assert!(put_aside >= SEQUENCES, "{what}: only {put_aside} rows were put aside");
    for served in &done {
        let Request { tokens, text, .. } = &requests[served.index];
        assert_eq!((&served.tokens, &served.text), (tokens, text), "{what}: sequence {}", served.index);
    }
    let near_tie = |Divergence { sequence, position, batched }| {
        let request = &requests[sequence];
        let scores = scores_alone(model, request, position);
        let alone = request.tokens[position];
        let margin = f64::from(scores[alone as usize]) - f64::from(scores[batched as usize]);
        let largest = scores.iter().fold(0.0_f64, |largest, &score| largest.max(f64::from(score.abs())));
        let tie =
            format!("sequence {sequence}, token {position}: {alone} alone, {batched} in the batch, {margin} apart");
        // The logits of both may be off by the tolerance.
        let allowed = 2.0 * Tolerance::of(ToleranceClass::Logits, Precision::Fp32).bound(largest);
        assert!(margin <= allowed, "{what}: expected a near-tie of at most {allowed}, got {tie}");
        tie
    };
    divergences.into_iter().map(near_tie).collect()
}

/// The runtimes and devices of the table, each once.
fn devices() -> impl Iterator<Item = &'static Row> {
    rows().filter(|row| row.lowering == Lowering::Function)
}

#[test]
fn forty_sequences_that_join_and_leave_a_batch_generate_the_text_that_each_generates_alone() {
    for name in ["densemamba-tiny", "denseretnet-tiny"] {
        let exported = exported(&trained(name), &ExportOptions::default());
        let tokenizer = Tokenizer::open(exported.bundle.dir()).unwrap();
        for row in devices() {
            let what = format!("{name}, {}", row.name());
            for tie in serve(&mut *row.load(&exported.bundle), &tokenizer, &what) {
                println!("{what}: near-tie: {tie}");
            }
        }
    }
}
