//! Requests that come, go, fail and are refused.

use crate::fake::{Draws, FakeModel, OWNED, Speech, VOCABULARY, alone, sampled};
use densessm_generate::{FinishReason, GenerateOptions};
use densessm_proto::{GraphKind, LogitsMode};
use densessm_serve::{
    CacheOptions, Event, Events, Failure, Refusal, Request, Scheduler, SchedulerOptions, TokenLogprobs,
};
use std::time::{Duration, Instant};

fn options() -> SchedulerOptions {
    SchedulerOptions::default().with_slots(8).with_piece(7).with_cache(CacheOptions::disabled())
}

fn prompt(draws: &mut Draws, length: usize) -> Vec<u32> {
    (0..length).map(|_| draws.below(VOCABULARY) as u32).collect()
}

fn text(events: Events) -> String {
    events.read_to_end().unwrap().0
}

/// Waits until nothing runs, and fails if that takes longer than any test does.
fn wait_until_idle(scheduler: &Scheduler) {
    let begin = Instant::now();
    while scheduler.metrics().running() + scheduler.metrics().waiting() > 0 {
        assert!(begin.elapsed() < Duration::from_secs(60), "a slot is still taken");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn sixteen_requests_of_different_lengths_have_the_text_that_each_has_alone() {
    for slots in [1, 3, 16] {
        let scheduler = FakeModel::both(Speech::Noise).serve(options().with_slots(slots));
        let mut draws = Draws(1);
        let requests: Vec<_> =
            (0..16).map(|i| (prompt(&mut draws, 1 + 5 * i as usize), sampled(3 + (7 * i as usize) % 40, i))).collect();
        let events: Vec<_> = requests
            .iter()
            .map(|(prompt, options)| scheduler.submit(Request::new(prompt.clone(), options.clone())).unwrap())
            .collect();
        for ((prompt, options), events) in requests.iter().zip(events) {
            assert_eq!(text(events), alone(Speech::Noise, prompt, options).0, "{slots} slots");
        }
    }
}

#[test]
fn every_kind_of_bundle_serves_prompts_of_every_length() {
    for graphs in [&[GraphKind::Parallel, GraphKind::Recurrent][..], &[GraphKind::Parallel], &[GraphKind::Recurrent]] {
        for cache in [CacheOptions::disabled(), CacheOptions::default()] {
            let model = FakeModel::new(graphs, LogitsMode::Last, Speech::Noise);
            let scheduler = model.serve(options().with_cache(cache));
            for length in 1..24 {
                let prompt = prompt(&mut Draws(length as u64), length);
                let expected = alone(Speech::Noise, &prompt, &sampled(5, 3));
                for _ in 0..2 {
                    let got = text(scheduler.submit(Request::new(prompt.clone(), sampled(5, 3))).unwrap());
                    assert_eq!(got, expected.0, "{graphs:?}, {length} tokens");
                }
            }
        }
    }
}

#[test]
fn a_long_prompt_is_read_in_pieces_between_the_steps_of_what_runs() {
    let model = FakeModel::both(Speech::Noise);
    let calls = model.calls.clone();
    let scheduler = model.serve(options());
    let mut running = scheduler.submit(Request::new([1], sampled(4000, 0))).unwrap();
    for _ in 0..3 {
        running.next().unwrap();
    }
    let long = prompt(&mut Draws(5), 70);
    text(scheduler.submit(Request::new(long.clone(), sampled(2, 0))).unwrap());
    drop(running);
    wait_until_idle(&scheduler);
    let calls = calls.lock().unwrap();
    let pieces: Vec<usize> = (0..calls.len()).filter(|&at| calls[at].0 == GraphKind::Parallel).collect();
    let read: Vec<i64> = pieces.iter().flat_map(|&at| calls[at].1[0].clone()).collect();
    // The last token of a prompt is part of a step.
    assert_eq!(read, long[..69].iter().map(|&token| i64::from(token)).collect::<Vec<_>>());
    assert_eq!(pieces.len(), 10);
    for pair in pieces.windows(2) {
        assert_eq!(pair[1], pair[0] + 2, "no step, or more than one, between two pieces");
    }
}

#[test]
fn cancellations_at_random_moments_leave_no_slot_taken_and_no_text_wrong() {
    let scheduler = FakeModel::both(Speech::Noise).serve(options().with_slots(6));
    let mut draws = Draws(9);
    for _ in 0..200 {
        let mut kept = Vec::new();
        let mut dropped = Vec::new();
        for i in 0..8 {
            let length = 1 + draws.below(30);
            let (prompt, options) = (prompt(&mut draws, length), sampled(1 + draws.below(20), i));
            let events = scheduler.submit(Request::new(prompt.clone(), options.clone())).unwrap();
            if draws.below(2) == 0 {
                dropped.push((events, draws.below(12)));
            } else {
                kept.push((prompt, options, events));
            }
        }
        for (mut events, count) in dropped {
            for _ in 0..count {
                events.next();
            }
        }
        for (prompt, options, events) in kept {
            assert_eq!(text(events), alone(Speech::Noise, &prompt, &options).0);
        }
    }
    wait_until_idle(&scheduler);
    // Only if every slot is free is there one for each choice.
    let all = scheduler.submit(Request::new([5], sampled(2, 0)).with_choices(6)).unwrap();
    assert_eq!(all.filter(|event| matches!(event, Event::Finished(_))).count(), 6);
}

#[test]
fn no_token_of_one_sequence_ever_appears_in_the_state_of_another() {
    // The model panics on the first foreign token, and every request after that is refused.
    let cache = CacheOptions::default().with_bytes(20_000).with_branch_tokens(2);
    let scheduler = FakeModel::both(Speech::Owned).serve(options().with_cache(cache));
    let mut draws = Draws(4);
    for _ in 0..60 {
        let mut events: Vec<Events> = (0..12)
            .map(|_| {
                let owner = draws.below(VOCABULARY / OWNED as usize) as u32;
                // Few different prompts, so that many continue cached states.
                let length = 1 + draws.below(20) as u32;
                let prompt: Vec<u32> = (0..length).map(|i| owner * OWNED + (i * 7) % OWNED).collect();
                let options = GenerateOptions::default().with_max_new_tokens(1 + draws.below(12));
                let choices = 1 + draws.below(3);
                scheduler.submit(Request::new(prompt, options).with_choices(choices)).unwrap()
            })
            .collect();
        drop(events.swap_remove(draws.below(12)));
        for events in events {
            events.read_to_end().unwrap();
        }
    }
    assert!(scheduler.metrics().cache_hits() > 100, "only {} hits", scheduler.metrics().cache_hits());
}

#[test]
fn the_choices_of_a_prompt_are_those_of_the_seeds_from_its_own_on() {
    let scheduler = FakeModel::both(Speech::Noise).serve(options());
    let prompt = prompt(&mut Draws(2), 20);
    let events = scheduler.submit(Request::new(prompt.clone(), sampled(9, 40)).with_choices(3)).unwrap();
    let mut texts = vec![String::new(); 3];
    for event in events {
        if let Event::Piece(piece) = event {
            texts[piece.choice].push_str(&piece.text);
        }
    }
    let expected: Vec<String> = (40..43).map(|seed| alone(Speech::Noise, &prompt, &sampled(9, seed)).0).collect();
    assert_eq!(texts, expected);
}

#[test]
fn log_probabilities_of_prompt_and_text_are_those_of_the_scores() {
    let prompt = prompt(&mut Draws(3), 20);
    let (_, new) = alone(Speech::Noise, &prompt, &sampled(4, 1));
    let whole: Vec<i64> = prompt.iter().chain(&new).map(|&token| i64::from(token)).collect();
    let expected: Vec<TokenLogprobs> = (1..whole.len())
        .map(|at| TokenLogprobs::new(&Speech::Noise.scores(&whole[..at]), whole[at] as u32, 2))
        .collect();
    for logits in [LogitsMode::Last, LogitsMode::All] {
        for new_tokens in [4, 0] {
            let model = FakeModel::new(&[GraphKind::Parallel, GraphKind::Recurrent], logits, Speech::Noise);
            let scheduler = model.serve(options());
            let request = Request::new(prompt.clone(), sampled(new_tokens, 1)).with_logprobs(2).with_prompt_logprobs();
            let mut got = Vec::new();
            for event in scheduler.submit(request).unwrap() {
                match event {
                    Event::Prompt(told) => got.extend(told),
                    Event::Piece(piece) => got.extend(piece.logprobs),
                    _ => {}
                }
            }
            assert_eq!(got, expected[..19 + new_tokens], "{logits:?}, {new_tokens} new tokens");
        }
    }
}

#[test]
fn a_prompt_with_nothing_to_generate_is_read_and_can_be_continued() {
    let scheduler = FakeModel::both(Speech::Noise).serve(options());
    for length in [1, 2, 7, 30] {
        let prompt = prompt(&mut Draws(6), length);
        let (text, events) =
            scheduler.submit(Request::new(prompt.clone(), sampled(0, 0)).with_save()).unwrap().read_to_end().unwrap();
        assert_eq!(text, "");
        let Some(Event::Finished(finish)) = events.last() else { panic!("{events:?}") };
        assert_eq!((finish.reason, finish.new_tokens), (FinishReason::Length, 0));
        let request = Request::resume(finish.saved.clone().unwrap(), [], sampled(6, 2));
        let (got, _) = scheduler.submit(request).unwrap().read_to_end().unwrap();
        // Positions count from the start of the sequence, so the draws are the same.
        assert_eq!(got, alone(Speech::Noise, &prompt, &sampled(6, 2)).0, "{length} tokens");
    }
}

#[test]
fn saved_sequences_are_fetched_loaded_continued_and_forgotten_and_the_oldest_goes_first() {
    let scheduler = FakeModel::both(Speech::Noise).serve(options().with_max_saved(2));
    let prompt = prompt(&mut Draws(7), 12);
    let saved = |events: Vec<Event>| match events.last() {
        Some(Event::Finished(finish)) => finish.saved.clone().unwrap(),
        other => panic!("{other:?}"),
    };
    let request = Request::new(prompt.clone(), sampled(5, 1)).with_save();
    let (first, events) = scheduler.submit(request).unwrap().read_to_end().unwrap();
    let id = saved(events);
    let loaded = scheduler.load(scheduler.fetch(&id).unwrap()).unwrap();
    assert_eq!((loaded.consumed, loaded.pending), (16, 1));
    let whole = alone(Speech::Noise, &prompt, &sampled(11, 1)).0;
    for id in [&id, &loaded.id] {
        let (rest, _) = scheduler.submit(Request::resume(id, [], sampled(6, 1))).unwrap().read_to_end().unwrap();
        assert_eq!(format!("{first}{rest}"), whole);
    }
    let third = scheduler.load(scheduler.fetch(&loaded.id).unwrap()).unwrap();
    assert_eq!(scheduler.fetch(&id), Err(Failure::UnknownState(id.clone())));
    scheduler.forget(&third.id).unwrap();
    assert_eq!(scheduler.forget(&third.id), Err(Failure::UnknownState(third.id.clone())));
    let failed = scheduler.submit(Request::resume(&id, [], sampled(6, 1))).unwrap().read_to_end();
    assert_eq!(failed.unwrap_err(), Failure::UnknownState(id));
}

#[test]
fn requests_over_the_limits_are_refused_with_the_limit() {
    let options = options().with_limits(10, 20).with_queue(2).with_slots(2);
    let mut model = FakeModel::both(Speech::Noise);
    model.delay = Duration::from_millis(1);
    let scheduler = model.serve(options);
    let refused = |request: Request| scheduler.submit(request).unwrap_err();
    assert_eq!(refused(Request::new([1; 11], sampled(1, 0))), Refusal::PromptTooLong { limit: 10, got: 11 });
    assert_eq!(refused(Request::new([1], sampled(21, 0))), Refusal::TooManyNewTokens { limit: 20, got: 21 });
    for choices in [0, 3] {
        let request = Request::new([1], sampled(1, 0)).with_choices(choices);
        assert_eq!(refused(request), Refusal::Choices { limit: 2, got: choices });
    }
    let token = VOCABULARY as u32;
    assert_eq!(refused(Request::new([1, token], sampled(1, 0))), Refusal::Token { token, vocabulary: VOCABULARY });
    assert!(matches!(refused(Request::new([], sampled(1, 0))), Refusal::Invalid(_)));
    assert!(matches!(refused(Request::new([1], sampled(1, 0).with_stop([""]))), Refusal::Invalid(_)));
    let running = scheduler.submit(Request::new([1], sampled(20, 0)).with_choices(2)).unwrap();
    let mut queued = Vec::new();
    let full = loop {
        match scheduler.submit(Request::new([1], sampled(20, 0)).with_choices(2)) {
            Ok(events) => queued.push(events),
            Err(refusal) => break refusal,
        }
    };
    assert_eq!(full, Refusal::QueueFull { limit: 2 });
    drop((running, queued));
    wait_until_idle(&scheduler);
    scheduler.submit(Request::new([1], sampled(1, 0))).unwrap().read_to_end().unwrap();
}

#[test]
fn a_request_whose_time_is_over_leaves_whether_it_runs_or_waits() {
    let mut model = FakeModel::both(Speech::Noise);
    model.delay = Duration::from_millis(2);
    let scheduler = model.serve(options().with_slots(1));
    let request = || Request::new([1], sampled(4000, 0)).with_timeout(Duration::from_millis(60));
    let (running, waiting) = (scheduler.submit(request()).unwrap(), scheduler.submit(request()).unwrap());
    assert_eq!(running.read_to_end().unwrap_err(), Failure::TimedOut);
    assert_eq!(waiting.read_to_end().unwrap_err(), Failure::TimedOut);
    scheduler.submit(Request::new([1], sampled(1, 0))).unwrap().read_to_end().unwrap();
}

#[test]
fn an_error_of_the_runtime_fails_what_it_concerns_and_the_rest_goes_on() {
    // The first call reads a prompt, the second is a step.
    for fails_at in [0, 1] {
        let mut model = FakeModel::both(Speech::Noise);
        model.fails_at = Some(fails_at);
        let scheduler = model.serve(options());
        let failed = scheduler.submit(Request::new([1, 2, 3], sampled(5, 0))).unwrap().read_to_end().unwrap_err();
        assert!(matches!(&failed, Failure::Runtime(text) if text.contains("on purpose")), "{failed}");
        let text = text(scheduler.submit(Request::new([1, 2, 3], sampled(5, 0))).unwrap());
        assert_eq!(text, alone(Speech::Noise, &[1, 2, 3], &sampled(5, 0)).0);
    }
    // Scores that are no numbers concern one row only.
    let scheduler = FakeModel::both(Speech::NaN(30)).serve(options());
    let long = scheduler.submit(Request::new(vec![1; 25], sampled(20, 0))).unwrap();
    let short = scheduler.submit(Request::new([1], sampled(20, 0))).unwrap();
    assert!(matches!(long.read_to_end().unwrap_err(), Failure::Runtime(text) if text.contains("finite")));
    assert_eq!(text(short), alone(Speech::Noise, &[1], &sampled(20, 0)).0);
}

#[test]
fn shutdown_lets_requests_end_in_time_and_fails_the_rest() {
    let mut model = FakeModel::both(Speech::Noise);
    model.delay = Duration::from_millis(1);
    let scheduler = model.serve(options().with_slots(2));
    let short: Vec<Events> = (0..4).map(|i| scheduler.submit(Request::new([1], sampled(5, i))).unwrap()).collect();
    scheduler.shutdown(Duration::from_secs(60));
    for (seed, events) in (0..).zip(short) {
        assert_eq!(text(events), alone(Speech::Noise, &[1], &sampled(5, seed)).0);
    }
    assert_eq!(scheduler.submit(Request::new([1], sampled(5, 0))).unwrap_err(), Refusal::Stopping);

    let mut model = FakeModel::both(Speech::Noise);
    model.delay = Duration::from_millis(1);
    let scheduler = model.serve(options().with_slots(1));
    let long: Vec<Events> = (0..3).map(|_| scheduler.submit(Request::new([1], sampled(4000, 0))).unwrap()).collect();
    scheduler.shutdown(Duration::from_millis(20));
    for events in long {
        assert_eq!(events.read_to_end().unwrap_err(), Failure::Stopping);
    }
}

#[test]
fn requests_are_admitted_in_the_order_of_their_arrival() {
    let mut model = FakeModel::both(Speech::Noise);
    model.delay = Duration::from_millis(1);
    let calls = model.calls.clone();
    let scheduler = model.serve(options().with_slots(1));
    let events: Vec<Events> =
        (10..20).map(|first| scheduler.submit(Request::new([first], sampled(1, 0))).unwrap()).collect();
    for events in events {
        events.read_to_end().unwrap();
    }
    let fed: Vec<i64> = calls.lock().unwrap().iter().map(|(_, rows)| rows[0][0]).collect();
    assert_eq!(fed, (10..20).collect::<Vec<i64>>());
}
