//! Sequences without a model: fed by hand, and many of them in one batch.

use crate::fake::{FakeModel, Speech, VOCABULARY, tokenizer};
use densessm_generate::{
    Continuation, Error, FinishReason, GenerateOptions, Prompt, Sampling, Sequence, TextPosition, Tokenizer, generate,
};
use densessm_session::{Model, States, TokenBatch};
use std::sync::atomic::Ordering;

fn options(max_new_tokens: usize, seed: u64) -> GenerateOptions {
    let sampling = Sampling::new(1.0).with_top_p(0.9).with_seed(seed);
    GenerateOptions::default().with_max_new_tokens(max_new_tokens).with_sampling(sampling)
}

/// Scores by which greedy takes this token.
fn scores(token: u32) -> Vec<f32> {
    (0..VOCABULARY as u32).map(|other| if other == token { 1.0 } else { 0.0 }).collect()
}

#[test]
fn a_prompt_is_fed_in_pieces_of_any_size_and_the_last_one_gives_a_token() {
    let tokenizer = tokenizer();
    let prompt: Vec<u32> = (300..311).collect();
    let mut sequence =
        Sequence::new(&tokenizer, Prompt::tokens(prompt.clone()), GenerateOptions::default().with_max_new_tokens(2))
            .unwrap();
    let mut fed = Vec::new();
    for limit in [4, 1, 100] {
        let tokens = sequence.next_tokens(limit).to_vec();
        assert_eq!(tokens.len(), limit.min(prompt.len() - fed.len()));
        fed.extend(tokens.iter().map(|&token| token as u32));
        let piece = sequence.accept(tokens.len(), &scores(400)).unwrap();
        assert_eq!(piece.map(|piece| piece.token), (fed.len() == prompt.len()).then_some(Some(400)));
        assert_eq!(sequence.consumed(), fed.len() as u64);
    }
    assert_eq!(fed, prompt);
    assert_eq!((sequence.next_tokens(9), sequence.pending()), (&[400_i64][..], vec![400]));
    let piece = sequence.accept(1, &scores(401)).unwrap().unwrap();
    assert_eq!((piece.token, piece.finish), (Some(401), Some(FinishReason::Length)));
    assert_eq!(sequence.finish_reason(), Some(FinishReason::Length));
    assert!(sequence.next_tokens(9).is_empty(), "a sequence that has ended feeds nothing");
    assert_eq!((sequence.pending(), sequence.new_tokens(), sequence.consumed()), (vec![401], 2, 12));
}

#[test]
fn more_tokens_than_were_to_be_fed_are_an_error_and_change_nothing() {
    let tokenizer = tokenizer();
    let mut sequence = Sequence::new(&tokenizer, Prompt::tokens([5, 6]), GenerateOptions::default()).unwrap();
    for count in [0, 3] {
        let error = sequence.accept(count, &scores(7)).unwrap_err();
        assert_eq!(error.to_string(), format!("sequence: expected 1 to 2 tokens fed, got {count}"));
    }
    assert_eq!((sequence.consumed(), sequence.pending()), (0, vec![5, 6]));
    sequence.end(FinishReason::Cancelled);
    assert!(matches!(sequence.accept(1, &scores(7)), Err(Error::Fed { due: 0, count: 1 })));
    // The first reason is the one that counts.
    assert_eq!(sequence.end(FinishReason::Length).finish, Some(FinishReason::Cancelled));
}

#[test]
fn with_no_tokens_to_generate_everything_but_the_last_token_is_read() {
    let tokenizer = tokenizer();
    let none = || GenerateOptions::default().with_max_new_tokens(0);
    let mut sequence = Sequence::new(&tokenizer, Prompt::tokens([5, 6, 7]), none()).unwrap();
    assert_eq!(sequence.next_tokens(9), [5, 6]);
    let piece = sequence.accept(2, &[]).unwrap().unwrap();
    assert_eq!((piece.token, piece.finish), (None, Some(FinishReason::Length)));
    assert_eq!(sequence.pending(), [7]);
    let one = Sequence::new(&tokenizer, Prompt::tokens([5]), none()).unwrap();
    assert_eq!((one.finish_reason(), one.next_tokens(9)), (Some(FinishReason::Length), &[][..]));
}

#[test]
fn text_that_is_held_back_comes_with_the_end() {
    let tokenizer = tokenizer();
    let words = tokenizer.encode("king, king", TextPosition::After).unwrap();
    let stop = || GenerateOptions::default().with_stop(["king, kingdom"]);
    let mut sequence = Sequence::new(&tokenizer, Prompt::text("Say:"), stop()).unwrap();
    let mut text = String::new();
    for &word in &words {
        let count = sequence.next_tokens(99).len();
        text.push_str(&sequence.accept(count, &scores(word)).unwrap().unwrap().text);
    }
    assert_eq!(text, "", "it may be the beginning of the stop string");
    assert_eq!(sequence.end(FinishReason::Cancelled).text, "king, king");
}

#[test]
fn clones_that_accept_the_same_logits_draw_by_their_own_seeds() {
    let tokenizer = tokenizer();
    let prompt: Vec<u32> = (300..320).collect();
    let alone = |seed| {
        let mut model = FakeModel::both(Speech::Noise);
        let generation = generate(&mut model, &tokenizer, Prompt::tokens(prompt.clone()), options(9, seed)).unwrap();
        generation.filter_map(|piece| piece.unwrap().token).collect::<Vec<_>>()
    };
    let mut model = FakeModel::both(Speech::Noise);
    let read = Sequence::new(&tokenizer, Prompt::tokens(prompt.clone()), options(9, 0)).unwrap();
    let mut states = model.initial_states(1).unwrap();
    let tokens = read.next_tokens(99).to_vec();
    let logits = model.prefill(&TokenBatch::new(&tokens, &[tokens.len()]).unwrap(), &mut states).unwrap();
    for seed in 1..4 {
        let mut clone = read.clone();
        clone.reseed(seed);
        let first = clone.accept(tokens.len(), logits.last(0, tokens.len())).unwrap().unwrap().token.unwrap();
        assert_eq!(first, alone(seed)[0]);
    }
}

#[test]
fn a_continuation_draws_at_the_positions_of_the_whole_sequence() {
    let tokenizer = tokenizer();
    let prompt: Vec<u32> = (300..310).collect();
    let scores: Vec<f32> = (0..VOCABULARY).map(|token| (token % 7) as f32).collect();
    let mut whole = Sequence::new(&tokenizer, Prompt::tokens(prompt.clone()), options(1, 5)).unwrap();
    let drawn = whole.accept(10, &scores).unwrap();
    let after = Continuation::new(6, &prompt[6..8]);
    let rest = Prompt::tokens(&prompt[8..]);
    let mut resumed = Sequence::resume(&tokenizer, after, Some(rest), options(1, 5)).unwrap();
    assert_eq!(resumed.next_tokens(99), [306, 307, 308, 309]);
    assert_eq!(resumed.accept(4, &scores).unwrap(), drawn);
    let nothing = Sequence::resume(&tokenizer, Continuation::new(6, []), None, options(1, 5)).err();
    assert!(matches!(nothing, Some(Error::EmptyPrompt)));
}

/// A sequence being served, and what it has said.
struct Served {
    index: usize,
    sequence: Sequence,
    tokens: Vec<u32>,
    text: String,
}

impl Served {
    fn accept(&mut self, count: usize, scores: &[f32]) -> bool {
        let Some(piece) = self.sequence.accept(count, scores).unwrap() else { return false };
        self.tokens.extend(piece.token);
        self.text.push_str(&piece.text);
        piece.finish.is_some()
    }
}

/// Prompt and options of the sequence with this number.
fn request(index: usize) -> (Prompt, GenerateOptions) {
    let length = 1 + (index * 7) % 23;
    let prompt: Vec<u32> = (0..length).map(|at| (259 + (index * 131 + at * 37) % 700) as u32).collect();
    (Prompt::tokens(prompt), options(3 + (index * 11) % 40, index as u64))
}

/// Reads a prompt in chunks with states of its own.
fn read(model: &mut FakeModel, served: &mut Served, chunk: usize) -> (States, bool) {
    let mut states = model.initial_states(1).unwrap();
    loop {
        let tokens = served.sequence.next_tokens(chunk).to_vec();
        let logits = model.prefill(&TokenBatch::new(&tokens, &[tokens.len()]).unwrap(), &mut states).unwrap();
        let over = served.accept(tokens.len(), logits.last(0, tokens.len()));
        if over || served.sequence.new_tokens() > 0 {
            return (states, over);
        }
    }
}

fn alone(tokenizer: &Tokenizer, index: usize) -> (Vec<u32>, String) {
    let (prompt, options) = request(index);
    let mut model = FakeModel::both(Speech::Noise);
    let pieces: Vec<_> =
        generate(&mut model, tokenizer, prompt, options).unwrap().map(|piece| piece.unwrap()).collect();
    let text = pieces.iter().map(|piece| piece.text.as_str()).collect();
    (pieces.iter().filter_map(|piece| piece.token).collect(), text)
}

#[test]
fn forty_sequences_in_one_changing_batch_say_what_they_say_alone_without_a_snapshot() {
    const SEQUENCES: usize = 40;
    let tokenizer = tokenizer();
    let mut model = FakeModel::both(Speech::Noise);
    let mut batch = model.initial_states(0).unwrap();
    let (mut rows, mut done, mut next): (Vec<Served>, Vec<Served>, usize) = Default::default();
    let mut sizes = Vec::new();
    for step in 0_usize.. {
        // New sequences come in bursts, so that the batch grows and shrinks.
        while next < SEQUENCES && next < (step / 10) * 7 {
            let (prompt, options) = request(next);
            let sequence = Sequence::new(&tokenizer, prompt, options).unwrap();
            let mut served = Served { index: next, sequence, tokens: Vec::new(), text: String::new() };
            let (states, over) = read(&mut model, &mut served, 1 + next % 9);
            if over {
                done.push(served);
            } else {
                batch.join(&states).unwrap();
                rows.push(served);
            }
            next += 1;
        }
        if rows.is_empty() && next == SEQUENCES {
            break;
        }
        if rows.is_empty() {
            continue;
        }
        sizes.push(rows.len());
        let tokens: Vec<i64> = rows.iter().map(|served| served.sequence.next_tokens(1)[0]).collect();
        let logits = model.step(&tokens, &mut batch).unwrap();
        let over: Vec<bool> =
            rows.iter_mut().enumerate().map(|(row, served)| served.accept(1, logits.at(row, 0))).collect();
        // In descending order, so that the row that replaces a removed one has been handled already.
        for row in (0..rows.len()).rev().filter(|&row| over[row]) {
            batch.swap_remove(row).unwrap();
            done.push(rows.swap_remove(row));
        }
        assert_eq!(batch.batch(), rows.len());
    }
    assert_eq!(done.len(), SEQUENCES);
    assert!(sizes.iter().max() > Some(&12), "{sizes:?}");
    for served in &done {
        assert_eq!((served.tokens.clone(), served.text.clone()), alone(&tokenizer, served.index), "{}", served.index);
    }
    assert_eq!(model.snapshots.load(Ordering::Relaxed), 0);
}
