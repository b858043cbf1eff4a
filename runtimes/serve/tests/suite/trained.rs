//! The trained checkpoints on tract: texts among others, and cached states, to the bit.

use crate::fake::{Draws, checkpoint, sampled};
use densessm_bundle::{ExportOptions, export};
use densessm_checkpoint::Checkpoint;
use densessm_generate::{GenerateOptions, Prompt, TextPosition, Tokenizer, generate};
use densessm_serve::{CacheOptions, Event, Request, Scheduler, SchedulerOptions};
use densessm_session::{Bundle, LoadOptions, Model, Runtime, Snapshot, TokenBatch};
use densessm_tract::TractRuntime;
use std::ops::ControlFlow;

const MODELS: [&str; 2] = ["densemamba-tiny", "denseretnet-tiny"];
const PIECE: usize = 16;

struct Exported {
    bundle: Bundle,
    tokenizer: Tokenizer,
    _folder: tempfile::TempDir,
}

impl Exported {
    fn new(name: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("bundle");
        let checkpoint = Checkpoint::open(&checkpoint(name)).unwrap();
        export(&checkpoint, &out, &ExportOptions::default(), |_| ControlFlow::Continue(())).unwrap();
        Self { bundle: Bundle::open(&out).unwrap(), tokenizer: Tokenizer::open(&out).unwrap(), _folder: folder }
    }

    fn model(&self) -> Box<dyn Model> {
        TractRuntime.load(&self.bundle, &LoadOptions::for_bundle(&self.bundle)).unwrap()
    }

    fn serve(&self, cache: CacheOptions) -> Scheduler {
        let options = SchedulerOptions::default().with_piece(PIECE).with_cache(cache);
        Scheduler::start(self.model(), self.tokenizer.clone(), options).unwrap()
    }

    fn text(&self) -> Vec<u32> {
        let path = checkpoint("../text/shakespeare-heldout.txt");
        self.tokenizer.encode(&std::fs::read_to_string(path).unwrap(), TextPosition::Start).unwrap()
    }
}

#[test]
fn sixteen_requests_at_once_have_the_text_that_generate_gives_each() {
    for name in MODELS {
        let exported = Exported::new(name);
        let ids = exported.text();
        let mut draws = Draws(1);
        let requests: Vec<(Vec<u32>, GenerateOptions)> = (0..16)
            .map(|seed| {
                let (length, new) = (1 + draws.below(60), 10 + draws.below(40));
                let start = draws.below(ids.len() - length);
                let greedy = GenerateOptions::default().with_max_new_tokens(new);
                let options = if seed % 2 == 0 { greedy } else { sampled(new, seed) };
                (ids[start..start + length].to_vec(), options)
            })
            .collect();
        let mut model = exported.model();
        let expected: Vec<String> = requests
            .iter()
            .map(|(prompt, options)| {
                let prompt = Prompt::tokens(prompt.clone());
                let mut generation = generate(&mut *model, &exported.tokenizer, prompt, options.clone()).unwrap();
                generation.read_to_end().unwrap().0
            })
            .collect();
        let scheduler = exported.serve(CacheOptions::default());
        // The second round continues cached states.
        for round in 0..2 {
            let events: Vec<_> = requests
                .iter()
                .map(|(prompt, options)| scheduler.submit(Request::new(prompt.clone(), options.clone())).unwrap())
                .collect();
            for (index, events) in events.into_iter().enumerate() {
                assert_eq!(events.read_to_end().unwrap().0, expected[index], "{name}, round {round}, request {index}");
            }
        }
        assert!(scheduler.metrics().cache_hits() >= 14);
    }
}

/// The states of a prompt whose last token is pending, and the number of tokens that were not read.
fn states(scheduler: &Scheduler, prompt: &[u32], cache: bool) -> (Snapshot, usize) {
    let request = Request::new(prompt, GenerateOptions::default().with_max_new_tokens(0)).with_save();
    let request = if cache { request } else { request.without_cache() };
    let (_, events) = scheduler.submit(request).unwrap().read_to_end().unwrap();
    match (&events[0], &events[events.len() - 1]) {
        (Event::Started(started), Event::Finished(finish)) => {
            (scheduler.fetch(finish.saved.as_ref().unwrap()).unwrap(), started.cached_tokens)
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_hit_in_memory_or_on_disk_equals_reading_the_same_pieces_to_the_bit() {
    for name in MODELS {
        let exported = Exported::new(name);
        let folder = tempfile::tempdir().unwrap();
        let on_disk = CacheOptions::default().with_bytes(0).with_folder(folder.path(), 1 << 30);
        let ids = exported.text();
        let (first, longer) = (&ids[..71], &ids[..120]);

        // Reads a prefix of the text in the pieces that end at these numbers of tokens.
        let by_hand = |ends: &[usize]| {
            let mut model = exported.model();
            let mut states = model.initial_states(1).unwrap();
            for (begin, end) in [0].iter().chain(ends).zip(ends) {
                let piece: Vec<i64> = ids[*begin..*end].iter().map(|&token| i64::from(token)).collect();
                model.prefill(&TokenBatch::new(&piece, &[piece.len()]).unwrap(), &mut states).unwrap();
            }
            states.snapshot().unwrap()
        };
        let scheduler = exported.serve(CacheOptions::default());
        let (alone, none) = states(&scheduler, first, true);
        assert_eq!((none, alone.tensors()), (0, by_hand(&[16, 32, 48, 64, 70]).tensors()), "{name}");
        let (hit, cached) = states(&scheduler, first, true);
        assert_eq!((cached, hit.tensors()), (70, alone.tensors()), "{name}: the same prompt");
        let expected = by_hand(&[16, 32, 48, 64, 70, 80, 96, 112, 119]);
        let (hit, cached) = states(&scheduler, longer, true);
        assert_eq!((cached, hit.tensors()), (70, expected.tensors()), "{name}: a longer prompt");
        assert_eq!(states(&scheduler, first, false).0.tensors(), alone.tensors(), "{name}: without the cache");

        // From disk, after a restart.
        let scheduler = exported.serve(on_disk.clone());
        states(&scheduler, first, true);
        scheduler.shutdown(std::time::Duration::from_secs(60));
        let scheduler = exported.serve(on_disk);
        let (hit, cached) = states(&scheduler, longer, true);
        assert_eq!((cached, hit.tensors()), (70, expected.tensors()), "{name}: from disk");
    }
}
