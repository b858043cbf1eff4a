//! The decode loop on a model that remembers every token it was fed.

use crate::fake::{FakeModel, Speech, VOCABULARY, tokenizer};
use densessm_generate::{
    Error, FinishReason, GenerateOptions, Generation, PREFILL_CHUNK, Piece, Prompt, Sampling, SavedSequence,
    TextPosition, Tokenizer, generate, resume,
};
use densessm_proto::GraphKind::{self, Parallel, Recurrent};
use densessm_session::{Model, Snapshot};
use std::sync::{Arc, atomic::AtomicBool, atomic::Ordering};

const NEWLINE: u32 = 13;
const EOS: u32 = 2;

fn sampled(max_new_tokens: usize, seed: u64) -> GenerateOptions {
    let sampling = Sampling::new(1.0).with_top_p(0.95).with_seed(seed);
    GenerateOptions::default().with_max_new_tokens(max_new_tokens).with_sampling(sampling)
}

fn long_prompt(length: usize) -> Vec<u32> {
    (0..length as u32).map(|i| 259 + (i * 37) % 700).collect()
}

/// Token ids, text and finish reason of all pieces to come.
fn drain(generation: &mut Generation<'_>) -> (Vec<u32>, String, Option<FinishReason>) {
    let pieces: Vec<Piece> = generation.map(Result::unwrap).collect();
    let ended = pieces.iter().position(|piece| piece.finish.is_some());
    assert_eq!(ended, Some(pieces.len() - 1), "exactly the last piece says why it ended");
    (
        pieces.iter().filter_map(|piece| piece.token).collect(),
        pieces.iter().map(|piece| piece.text.as_str()).collect(),
        pieces.last().and_then(|piece| piece.finish),
    )
}

fn run(
    model: &mut FakeModel,
    tokenizer: &Tokenizer,
    prompt: Prompt,
    options: GenerateOptions,
) -> (Vec<u32>, String, Option<FinishReason>) {
    drain(&mut generate(model, tokenizer, prompt, options).unwrap())
}

/// Continues a saved sequence without a further prompt.
fn run_on(
    model: &mut FakeModel,
    tokenizer: &Tokenizer,
    saved: SavedSequence,
    options: GenerateOptions,
) -> (Vec<u32>, String, Option<FinishReason>) {
    drain(&mut resume(model, tokenizer, saved, None, options).unwrap())
}

/// A model that generates these tokens after this prompt, and then repeats the last one.
fn speaker(tokenizer: &Tokenizer, prompt: &str, tokens: Vec<u32>) -> FakeModel {
    let start = tokenizer.encode(prompt, TextPosition::Start).unwrap().len();
    FakeModel::both(Speech::Script { start, tokens })
}

fn says(tokenizer: &Tokenizer, prompt: &str, text: &str) -> FakeModel {
    speaker(tokenizer, prompt, tokenizer.encode(text, TextPosition::After).unwrap())
}

#[test]
fn chunked_prefill_equals_steps_and_either_graph_alone() {
    let tokenizer = tokenizer();
    for length in [1, 2, PREFILL_CHUNK, PREFILL_CHUNK + 1, 2 * PREFILL_CHUNK + 176] {
        let on_graphs = |graphs: &[GraphKind]| {
            let mut model = FakeModel::new(graphs, Speech::Noise);
            let made = run(&mut model, &tokenizer, Prompt::tokens(long_prompt(length)), sampled(12, 3));
            (made, model.calls)
        };
        let (both, calls) = on_graphs(&[Parallel, Recurrent]);
        let (recurrent, steps) = on_graphs(&[Recurrent]);
        let (parallel, _) = on_graphs(&[Parallel]);
        assert_eq!(both, recurrent);
        assert_eq!(both, parallel);
        assert_eq!(steps.len(), length + 11);
        let prompt_calls: Vec<_> = calls[..calls.len() - 11].to_vec();
        let mut expected = vec![(Parallel, PREFILL_CHUNK); length / PREFILL_CHUNK];
        match length % PREFILL_CHUNK {
            0 => {}
            1 => expected.push((Recurrent, 1)),
            rest => expected.push((Parallel, rest)),
        }
        assert_eq!(prompt_calls, expected);
        assert!(calls[calls.len() - 11..].iter().all(|call| *call == (Recurrent, 1)));
    }
}

#[test]
fn a_graph_that_was_not_loaded_is_not_called() {
    let tokenizer = tokenizer();
    let mut model = FakeModel::both(Speech::Noise);
    let generation = generate(&mut model, &tokenizer, Prompt::tokens(long_prompt(9)), sampled(3, 0)).unwrap();
    drain(&mut generation.with_graphs(&[Recurrent]));
    assert_eq!(model.calls, [(Recurrent, 1); 11]);
}

#[test]
fn the_same_seed_gives_the_same_text_and_another_seed_another() {
    let tokenizer = tokenizer();
    let text = |seed| run(&mut FakeModel::both(Speech::Noise), &tokenizer, Prompt::text("KING"), sampled(40, seed));
    assert_eq!(text(1), text(1));
    assert_ne!(text(1), text(2));
}

#[test]
fn pieces_together_are_the_decoding_of_the_whole_after_the_prompt() {
    let tokenizer = tokenizer();
    for seed in 0..40 {
        let mut model = FakeModel::both(Speech::Noise);
        let (made, text, finish) = run(&mut model, &tokenizer, Prompt::text("Now is the winter"), sampled(60, seed));
        assert_eq!((made.len(), finish), (60, Some(FinishReason::Length)));
        let prompt = tokenizer.encode("Now is the winter", TextPosition::Start).unwrap();
        assert_eq!(tokenizer.decode(&[prompt, made].concat()).unwrap(), format!("Now is the winter{text}"));
    }
}

#[test]
fn a_sequence_paused_anywhere_goes_on_as_if_it_had_not_been() {
    let tokenizer = tokenizer();
    let mut model = FakeModel::both(Speech::Noise);
    let whole = run(&mut model, &tokenizer, Prompt::tokens(long_prompt(30)), sampled(24, 9));
    for pause in 0..24 {
        let mut model = FakeModel::both(Speech::Noise);
        let mut first = generate(&mut model, &tokenizer, Prompt::tokens(long_prompt(30)), sampled(pause, 9)).unwrap();
        let (mut tokens, _, finish) = drain(&mut first);
        assert_eq!(finish, Some(FinishReason::Length));
        let saved = first.into_saved();
        assert_eq!(saved.states.lengths(), [30 + pause as i64 - 1]);
        assert_eq!(saved.pending, [*tokens.last().unwrap_or(&long_prompt(30)[29])]);
        let (rest, _, _) = run_on(&mut model, &tokenizer, saved, sampled(24 - pause, 9));
        tokens.extend(rest);
        assert_eq!(tokens, whole.0, "paused after {pause} tokens");
    }
}

#[test]
fn a_paused_text_goes_on_with_its_spaces_and_without_a_second_beginning() {
    let tokenizer = tokenizer();
    let words = "the king is dead, long live the king";
    let mut model = says(&tokenizer, "Hear:", words);
    let options = || GenerateOptions::default().with_max_new_tokens(1);
    let length = tokenizer.encode(words, TextPosition::After).unwrap().len();
    let mut text = String::new();
    let mut generation = generate(&mut model, &tokenizer, Prompt::text("Hear:"), options()).unwrap();
    text.push_str(&drain(&mut generation).1);
    let mut saved = generation.into_saved();
    for _ in 1..length {
        let mut generation = resume(&mut model, &tokenizer, saved, None, options()).unwrap();
        text.push_str(&drain(&mut generation).1);
        saved = generation.into_saved();
    }
    assert_eq!(text, words);
}

#[test]
fn a_prompt_after_states_is_read_as_if_it_had_been_there_from_the_start() {
    let tokenizer = tokenizer();
    let (first, second) = (tokenizer.encode("KING RICHARD:\n", TextPosition::Start).unwrap(), "My lord");
    let after = tokenizer.encode(second, TextPosition::After).unwrap();
    assert_eq!(tokenizer.decode(&[first.clone(), after.clone()].concat()).unwrap(), "KING RICHARD:\nMy lord");
    let mut model = FakeModel::both(Speech::Noise);
    let whole = run(&mut model, &tokenizer, Prompt::tokens([first, after].concat()), sampled(10, 4));

    let mut model = FakeModel::both(Speech::Noise);
    let mut system = generate(&mut model, &tokenizer, Prompt::text("KING RICHARD:\n"), sampled(0, 4)).unwrap();
    assert_eq!(drain(&mut system), (vec![], String::new(), Some(FinishReason::Length)));
    let system = system.into_saved();
    for _ in 0..2 {
        let saved = system.fork().unwrap();
        let prompt = Some(Prompt::text(second));
        assert_eq!(drain(&mut resume(&mut model, &tokenizer, saved, prompt, sampled(10, 4)).unwrap()), whole);
    }
}

#[test]
fn a_saved_sequence_goes_on_in_another_process_as_if_it_had_not_been_paused() {
    let tokenizer = tokenizer();
    let whole = run(&mut FakeModel::both(Speech::Noise), &tokenizer, Prompt::text("KING:\n"), sampled(12, 5));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("king.states");
    for pause in [0, 1, 5] {
        let mut model = FakeModel::both(Speech::Noise);
        let mut first = generate(&mut model, &tokenizer, Prompt::text("KING:\n"), sampled(pause, 5)).unwrap();
        let (mut made, ..) = drain(&mut first);
        first.into_saved().snapshot().unwrap().save(&file).unwrap();

        let mut model = FakeModel::both(Speech::Noise);
        let saved = SavedSequence::restore(&mut model, &Snapshot::load(&file).unwrap()).unwrap();
        made.extend(run_on(&mut model, &tokenizer, saved, sampled(12 - pause, 5)).0);
        assert_eq!(made, whole.0);
    }
}

#[test]
fn a_snapshot_without_pending_tokens_needs_a_prompt_and_one_with_nonsense_is_an_error() {
    let tokenizer = tokenizer();
    let mut model = FakeModel::both(Speech::Noise);
    let mut read = generate(&mut model, &tokenizer, Prompt::text("KING:\n"), sampled(0, 0)).unwrap();
    drain(&mut read);
    let mut snapshot = read.into_saved().snapshot().unwrap();
    for nonsense in ["", "[-1]", "[1, \"a\"]", "{}"] {
        snapshot.metadata_mut().insert("pending_tokens".to_owned(), nonsense.to_owned());
        let error = SavedSequence::restore(&mut model, &snapshot).err().map(|error| error.to_string());
        assert_eq!(error, Some(format!("states: expected a list of token ids as pending tokens, got `{nonsense}`")));
    }
    snapshot.metadata_mut().clear();
    let saved = SavedSequence::restore(&mut model, &snapshot).unwrap();
    let alone = resume(&mut model, &tokenizer, saved.fork().unwrap(), None, sampled(3, 0)).err();
    assert!(matches!(alone, Some(Error::EmptyPrompt)));
    let prompt = Some(Prompt::text("No."));
    assert_eq!(drain(&mut resume(&mut model, &tokenizer, saved, prompt, sampled(3, 0)).unwrap()).0.len(), 3);
}

#[test]
fn a_stop_string_that_spans_tokens_ends_the_text_before_it() {
    let tokenizer = tokenizer();
    let text = "I am a king.\n\nLADY ANNE:\nNo.";
    for (stop, expected) in
        [("\n\nLADY", "I am a king."), ("ing", "I am a k"), ("NE:\nN", "I am a king.\n\nLADY AN"), ("I", "")]
    {
        let mut model = says(&tokenizer, "Say:", text);
        let options = GenerateOptions::default().with_stop(["not there", stop]);
        let mut generation = generate(&mut model, &tokenizer, Prompt::text("Say:"), options).unwrap();
        let mut shown = String::new();
        for piece in &mut generation {
            shown.push_str(&piece.unwrap().text);
            assert!(expected.starts_with(&shown), "{shown:?} is not the beginning of {expected:?}");
        }
        assert_eq!(shown, expected);
    }
}

#[test]
fn text_that_only_looked_like_a_stop_string_is_given_late_but_whole() {
    let tokenizer = tokenizer();
    let text = "king, king, kingdom";
    let length = tokenizer.encode(text, TextPosition::After).unwrap().len();
    let mut model = says(&tokenizer, "Say:", text);
    let options = GenerateOptions::default().with_stop(["king, kingdoms"]).with_max_new_tokens(length);
    let mut generation = generate(&mut model, &tokenizer, Prompt::text("Say:"), options).unwrap();
    assert_eq!(generation.read_to_end().unwrap(), (text.to_owned(), Some(FinishReason::Length)));
    assert_eq!(generation.read_to_end().unwrap(), (String::new(), None));
}

#[test]
fn a_newline_stops_at_once_though_its_run_of_bytes_is_still_open() {
    let tokenizer = tokenizer();
    let word = tokenizer.encode("king", TextPosition::After).unwrap();
    let mut model = speaker(&tokenizer, "Say:", [word.as_slice(), &[NEWLINE, NEWLINE, word[0]]].concat());
    let options = GenerateOptions::default().with_stop(["\n"]);
    let (made, text, finish) = run(&mut model, &tokenizer, Prompt::text("Say:"), options);
    assert_eq!((made, text.as_str(), finish), ([word, vec![NEWLINE]].concat(), "king", Some(FinishReason::StopString)));
}

#[test]
fn the_end_of_sequence_token_ends_it_and_has_no_text() {
    let tokenizer = tokenizer();
    let word = tokenizer.encode("king\n", TextPosition::After).unwrap();
    let mut model = speaker(&tokenizer, "Say:", [word.as_slice(), &[EOS, word[0]]].concat());
    let options = GenerateOptions::default().with_eos([EOS]);
    let mut generation = generate(&mut model, &tokenizer, Prompt::text("Say:"), options).unwrap();
    let (made, text, finish) = drain(&mut generation);
    assert_eq!((text.as_str(), finish), ("king\n", Some(FinishReason::EndOfSequence)));
    assert_eq!(made.last(), Some(&EOS));
    assert!(generation.next().is_none());
    assert_eq!(generation.into_saved().pending, [EOS]);
}

#[test]
fn cancelling_ends_with_what_was_made_and_the_sequence_can_go_on() {
    let tokenizer = tokenizer();
    let whole = run(&mut FakeModel::both(Speech::Noise), &tokenizer, Prompt::tokens(long_prompt(5)), sampled(20, 1));
    let mut model = FakeModel::both(Speech::Noise);
    let flag = Arc::new(AtomicBool::new(false));
    let generation = generate(&mut model, &tokenizer, Prompt::tokens(long_prompt(5)), sampled(20, 1)).unwrap();
    let mut generation = generation.cancelled_by(flag.clone());
    let mut made: Vec<u32> = generation.by_ref().take(7).filter_map(|piece| piece.unwrap().token).collect();
    flag.store(true, Ordering::Relaxed);
    let last = generation.next().unwrap().unwrap();
    assert_eq!((last.token, last.finish), (None, Some(FinishReason::Cancelled)));
    assert!(generation.next().is_none());
    let saved = generation.into_saved();
    made.extend(run_on(&mut model, &tokenizer, saved, sampled(13, 1)).0);
    assert_eq!(made, whole.0);
}

#[test]
fn a_long_prompt_can_be_cancelled_between_chunks_and_read_on() {
    let tokenizer = tokenizer();
    let prompt = long_prompt(3 * PREFILL_CHUNK + 7);
    let whole = run(&mut FakeModel::both(Speech::Noise), &tokenizer, Prompt::tokens(prompt.clone()), sampled(5, 1));
    for new_tokens in [0, 5] {
        let flag = Arc::new(AtomicBool::new(false));
        let mut model = FakeModel::both(Speech::Noise);
        model.cancels_at = Some((1, flag.clone()));
        let options = sampled(new_tokens, 1);
        let generation = generate(&mut model, &tokenizer, Prompt::tokens(prompt.clone()), options).unwrap();
        let mut generation = generation.cancelled_by(flag);
        assert_eq!(drain(&mut generation), (vec![], String::new(), Some(FinishReason::Cancelled)));
        let saved = generation.into_saved();
        assert_eq!(saved.states.lengths(), [2 * PREFILL_CHUNK as i64]);
        assert_eq!(saved.pending, prompt[2 * PREFILL_CHUNK..]);
        assert_eq!(run_on(&mut model, &tokenizer, saved, sampled(5, 1)).0, whole.0);
    }
}

#[test]
fn after_an_error_of_the_model_the_sequence_can_go_on() {
    let tokenizer = tokenizer();
    let whole = run(&mut FakeModel::both(Speech::Noise), &tokenizer, Prompt::tokens(long_prompt(600)), sampled(8, 1));
    for failing in 0..6 {
        let mut model = FakeModel::both(Speech::Noise);
        model.fails_at = Some(failing);
        let mut generation = generate(&mut model, &tokenizer, Prompt::tokens(long_prompt(600)), sampled(8, 1)).unwrap();
        let mut made = Vec::new();
        let error = loop {
            match generation.next().unwrap() {
                Ok(piece) => made.extend(piece.token),
                Err(error) => break error,
            }
        };
        assert_eq!(error.to_string(), "fake: failed on purpose");
        assert!(generation.next().is_none());
        let saved = generation.into_saved();
        let left = 8 - made.len();
        made.extend(run_on(&mut model, &tokenizer, saved, sampled(left, 1)).0);
        assert_eq!(made, whole.0);
    }
}

#[test]
fn statistics_count_prompt_and_new_tokens() {
    let tokenizer = tokenizer();
    let mut model = FakeModel::both(Speech::Noise);
    let mut generation = generate(&mut model, &tokenizer, Prompt::tokens(long_prompt(9)), sampled(4, 0)).unwrap();
    assert_eq!(generation.statistics().time_to_first_token, None);
    drain(&mut generation);
    let statistics = generation.statistics();
    assert_eq!((statistics.prompt_tokens, statistics.new_tokens), (9, 4));
    assert!(statistics.time_to_first_token <= statistics.time_to_last_token);
    assert!(statistics.decode_tokens_per_second().is_some_and(|rate| rate > 0.0));
}

#[test]
fn what_cannot_be_continued_is_an_error() {
    let tokenizer = tokenizer();
    let mut model = FakeModel::both(Speech::Noise);
    let mut error = |prompt: Prompt, options: GenerateOptions| match generate(&mut model, &tokenizer, prompt, options) {
        Ok(_) => panic!("expected an error"),
        Err(error) => error,
    };
    assert!(matches!(error(Prompt::text(""), GenerateOptions::default()), Error::EmptyPrompt));
    assert!(matches!(error(Prompt::tokens([]), GenerateOptions::default()), Error::EmptyPrompt));
    let token = error(Prompt::tokens([5, VOCABULARY as u32]), GenerateOptions::default()).to_string();
    assert_eq!(token, "prompt: token 1024 outside the vocabulary, expected an id below 1024");
    let options = GenerateOptions::default().with_stop([""]);
    assert_eq!(error(Prompt::text("a"), options).to_string(), "stop: expected a text, got an empty one");
    let options = GenerateOptions::default().with_sampling(Sampling::new(-1.0));
    assert_eq!(error(Prompt::text("a"), options).to_string(), "temperature: expected a number of at least 0, got -1");

    let mut model = FakeModel::both(Speech::Noise);
    let two = SavedSequence { states: model.initial_states(2).unwrap(), pending: vec![] };
    let none = SavedSequence { states: model.initial_states(1).unwrap(), pending: vec![] };
    let prompt = Some(Prompt::text("a"));
    let batch = resume(&mut model, &tokenizer, two, prompt, GenerateOptions::default()).err();
    assert!(matches!(batch, Some(Error::Batch(2))));
    let nothing = resume(&mut model, &tokenizer, none, None, GenerateOptions::default()).err();
    assert!(matches!(nothing, Some(Error::EmptyPrompt)));
}

#[test]
fn scores_that_are_no_numbers_end_the_generation_with_an_error() {
    let tokenizer = tokenizer();
    let mut model = FakeModel::both(Speech::NaN);
    let mut generation = generate(&mut model, &tokenizer, Prompt::text("a"), GenerateOptions::default()).unwrap();
    assert!(matches!(generation.next(), Some(Err(Error::Logits(_)))));
    assert!(generation.next().is_none());
}
