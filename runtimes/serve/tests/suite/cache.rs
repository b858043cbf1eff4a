//! The cache of prompt states: what it keeps, that a hit changes nothing, its bounds, and its folder.

use crate::fake::{Draws, FakeModel, STATE_BYTES, Speech, VOCABULARY, alone, sampled, tokenizer};
use densessm_proto::GraphKind;
use densessm_serve::{CacheOptions, Event, Log, Request, Scheduler, SchedulerOptions};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

fn options(cache: CacheOptions) -> SchedulerOptions {
    SchedulerOptions::default().with_slots(4).with_piece(16).with_cache(cache)
}

fn prompt(seed: u64, length: usize) -> Vec<u32> {
    let mut draws = Draws(seed);
    (0..length).map(|_| draws.below(VOCABULARY) as u32).collect()
}

/// Generates and checks the text, and returns the tokens of the prompt that were not read.
fn cached(scheduler: &Scheduler, prompt: &[u32], new_tokens: usize) -> usize {
    let request = Request::new(prompt, sampled(new_tokens, 1));
    let (text, events) = scheduler.submit(request).unwrap().read_to_end().unwrap();
    assert_eq!(text, alone(Speech::Noise, prompt, &sampled(new_tokens, 1)).0);
    match &events[0] {
        Event::Started(started) => {
            assert_eq!(started.prompt_tokens, prompt.len());
            started.cached_tokens
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_prompt_is_read_once_and_continued_from_its_end_its_turn_and_its_branch() {
    let scheduler = FakeModel::both(Speech::Noise).serve(options(CacheOptions::default().with_branch_tokens(8)));
    let first = prompt(1, 50);
    assert_eq!(cached(&scheduler, &first, 10), 0);
    // The same prompt: all but its last token.
    assert_eq!(cached(&scheduler, &first, 10), 49);
    // The next turn: all that the model has consumed, which is the text but its last token.
    let (_, new) = alone(Speech::Noise, &first, &sampled(10, 1));
    let turn = [&first[..], &new, &prompt(2, 5)].concat();
    assert_eq!(cached(&scheduler, &turn, 3), 59);
    // A prompt that leaves the path of the first finds nothing, but its state at that point serves the next one.
    let branch = |seed: u64| [&first[..30], &prompt(seed, 20)].concat();
    assert_eq!(cached(&scheduler, &branch(3), 1), 0);
    assert_eq!(cached(&scheduler, &branch(4), 1), 30);
    // A branch too close to a cached state is not worth one.
    let close = |seed: u64| [&first[..30], &branch(4)[30..36], &prompt(seed, 20)].concat();
    assert_eq!(cached(&scheduler, &close(5), 1), 30);
    assert_eq!(cached(&scheduler, &close(6), 1), 30);
    assert_eq!(scheduler.metrics().cached_tokens(), 49 + 59 + 30 * 3);
}

#[test]
fn a_request_without_cache_neither_finds_nor_leaves_states() {
    let scheduler = FakeModel::both(Speech::Noise).serve(options(CacheOptions::default()));
    let prompt = prompt(1, 50);
    for request in [Request::new(prompt.clone(), sampled(1, 1)).without_cache(), {
        Request::new(prompt.clone(), sampled(1, 1)).with_prompt_logprobs()
    }] {
        scheduler.submit(request).unwrap().read_to_end().unwrap();
        assert_eq!(scheduler.metrics().cache_bytes(), 0);
    }
}

#[test]
fn a_hit_feeds_the_model_the_pieces_that_were_left() {
    let model = FakeModel::both(Speech::Noise);
    let all_calls = model.calls.clone();
    let scheduler = model.serve(options(CacheOptions::default()));
    let long = prompt(1, 60);
    cached(&scheduler, &long[..41], 1);
    all_calls.lock().unwrap().clear();
    cached(&scheduler, &long, 1);
    let calls = all_calls.lock().unwrap();
    let read: Vec<usize> =
        calls.iter().filter(|call| call.0 == GraphKind::Parallel).map(|call| call.1[0].len()).collect();
    // From 40 to the next multiple of 16, and so on up to the last token.
    assert_eq!(read, [8, 11]);
    drop(calls);
    let other = prompt(2, 60);
    cached(&scheduler, &other[..47], 1);
    all_calls.lock().unwrap().clear();
    cached(&scheduler, &other, 1);
    // From 46, the next multiple is two tokens away, less than a quarter of a piece.
    let read: Vec<usize> = all_calls.lock().unwrap().iter().map(|call| call.1[0].len()).collect();
    assert_eq!(read, [13, 1]);
}

#[test]
fn memory_stays_below_its_bound_and_the_least_recently_used_state_goes_first() {
    let prefix_bytes = |tokens: u64| tokens * 4;
    let bound = 4 * (STATE_BYTES + prefix_bytes(20));
    let scheduler = FakeModel::both(Speech::Noise).serve(options(CacheOptions::default().with_bytes(bound)));
    let prompts: Vec<Vec<u32>> = (0..5).map(|seed| prompt(seed, 20)).collect();
    // Without new tokens, there is one state for each prompt.
    let read = |index: usize| {
        let kept = cached(&scheduler, &prompts[index], 0) > 0;
        assert!(scheduler.metrics().cache_bytes() <= bound);
        kept
    };
    assert_eq!([0, 1, 2, 3].map(read), [false; 4]);
    assert_eq!(scheduler.metrics().cache_bytes(), 4 * (STATE_BYTES + prefix_bytes(19)));
    assert!(read(0));
    assert!(!read(4), "the fifth prompt was not read before");
    assert!(!read(1), "the least recently used prompt is still there");
    assert!(read(0) && read(4) && read(3));
}

/// The log of a scheduler with a folder.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

impl Lines {
    fn containing(&self, word: &str) -> usize {
        self.0.lock().unwrap().iter().filter(|line| line.contains(word)).count()
    }
}

fn serve(folder: &Path, memory: u64, disk: u64) -> (Scheduler, Lines) {
    let lines = Lines::default();
    let log = {
        let lines = lines.clone();
        Log::to(move |line| lines.0.lock().unwrap().push(line.to_owned()))
    };
    let cache = CacheOptions::default().with_bytes(memory).with_folder(folder, disk);
    let model = Box::new(FakeModel::both(Speech::Noise));
    (Scheduler::start_with_log(model, tokenizer(), options(cache), log).unwrap(), lines)
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let model = fs::read_dir(folder).unwrap().next().unwrap().unwrap().path();
    let mut files: Vec<PathBuf> = fs::read_dir(model).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

const DISK: u64 = 1 << 20;

#[test]
fn states_survive_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let prompts: Vec<Vec<u32>> = (0..6).map(|seed| prompt(seed, 20 + seed as usize)).collect();
    for memory in [1 << 20, STATE_BYTES * 2, 0] {
        let (scheduler, lines) = serve(folder.path(), memory, DISK);
        let first = memory == 1 << 20;
        for prompt in &prompts {
            let expected = if first { 0 } else { prompt.len() - 1 };
            assert_eq!(cached(&scheduler, prompt, 4), expected, "{memory} bytes of memory");
        }
        scheduler.shutdown(Duration::from_secs(60));
        assert_eq!(lines.containing("dropped"), 0);
    }
    // At the end of each prompt and of each turn.
    assert_eq!(files(folder.path()).len(), 12);
}

#[test]
fn damaged_files_are_dropped_with_a_line_in_the_log_and_what_is_whole_remains() {
    let folder = tempfile::tempdir().unwrap();
    let prompts: Vec<Vec<u32>> = (0..6).map(|seed| prompt(seed, 20)).collect();
    let (scheduler, _) = serve(folder.path(), 1 << 20, DISK);
    for prompt in &prompts {
        cached(&scheduler, prompt, 0);
    }
    scheduler.shutdown(Duration::from_secs(60));
    let all = files(folder.path());
    let change = |path: &Path, change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = fs::read(path).unwrap();
        change(&mut bytes);
        fs::write(path, bytes).unwrap();
    };
    change(&all[0], &|bytes| bytes.truncate(bytes.len() / 2));
    change(&all[1], &|bytes| *bytes.last_mut().unwrap() ^= 1);
    change(&all[2], &|bytes| bytes[3] = 0xff);
    change(&all[3], &Vec::clear);
    // A whole file under another's name.
    fs::copy(&all[5], &all[4]).unwrap();
    let (scheduler, lines) = serve(folder.path(), 1 << 20, DISK);
    let found = prompts.iter().filter(|prompt| cached(&scheduler, prompt, 0) > 0).count();
    assert_eq!((found, lines.containing("dropped")), (1, 5));
    scheduler.shutdown(Duration::from_secs(60));
    // The others were read and written again.
    assert_eq!(files(folder.path()).len(), 6);
    let (scheduler, lines) = serve(folder.path(), 1 << 20, DISK);
    assert!(prompts.iter().all(|prompt| cached(&scheduler, prompt, 0) == 19));
    assert_eq!(lines.containing("dropped"), 0);
}

#[test]
fn a_file_that_vanishes_or_changes_while_the_server_runs_is_no_error() {
    let folder = tempfile::tempdir().unwrap();
    let (scheduler, _) = serve(folder.path(), 0, DISK);
    let prompt = prompt(1, 20);
    cached(&scheduler, &prompt, 0);
    scheduler.shutdown(Duration::from_secs(60));
    let (scheduler, lines) = serve(folder.path(), 0, DISK);
    fs::remove_file(&files(folder.path())[0]).unwrap();
    assert_eq!(cached(&scheduler, &prompt, 0), 0);
    assert_eq!(lines.containing("dropped"), 1);
}

#[test]
fn the_folder_stays_below_its_bound_over_restarts_and_keeps_other_files() {
    let folder = tempfile::tempdir().unwrap();
    let (scheduler, _) = serve(folder.path(), 1 << 20, DISK);
    cached(&scheduler, &prompt(0, 20), 0);
    scheduler.shutdown(Duration::from_secs(60));
    let size = fs::metadata(&files(folder.path())[0]).unwrap().len();
    let foreign = files(folder.path())[0].with_file_name("notes.txt");
    fs::write(&foreign, "kept").unwrap();
    for round in 0..2 {
        let (scheduler, _) = serve(folder.path(), 1 << 20, 3 * size + size / 2);
        for seed in 1..7 {
            cached(&scheduler, &prompt(10 * round + seed, 20), 0);
        }
        scheduler.shutdown(Duration::from_secs(60));
        // What was written last is noticed, and the bound enforced, when the folder is opened.
        let (scheduler, _) = serve(folder.path(), 1 << 20, 3 * size + size / 2);
        assert!(scheduler.metrics().cache_folder_bytes() <= 3 * size + size / 2);
        assert_eq!(files(folder.path()).len(), 4, "three states and the foreign file");
        let newest = cached(&scheduler, &prompt(10 * round + 6, 20), 0);
        assert_eq!(newest, 19, "the state that was written last is gone");
    }
    assert_eq!(fs::read_to_string(foreign).unwrap(), "kept");
}

#[test]
fn a_folder_that_cannot_be_made_is_an_error_that_names_it() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let cache = CacheOptions::default().with_folder(file.path().join("states"), DISK);
    let model = Box::new(FakeModel::both(Speech::Noise));
    let error = Scheduler::start(model, tokenizer(), options(cache)).unwrap_err().to_string();
    assert!(error.starts_with(file.path().to_str().unwrap()), "{error}");
}
