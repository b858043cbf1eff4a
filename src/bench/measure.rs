//! Running a model as `generate` does, with a clock.

use super::{AtPosition, Bench, BenchPlan, Decode, Machine, Prefill, Roofline, Run, machine, median};
use crate::{inspect, runtime};
use densessm_generate::PREFILL_CHUNK;
use densessm_proto::{Architecture, DType, GraphKind};
use densessm_session::{Error, Logits, Model, RuntimeInfo, Snapshot, States, TokenBatch, argmax};
use rand::{Rng, SeedableRng, rngs::ChaCha8Rng};
use std::{
    hint::black_box,
    iter,
    ops::{ControlFlow, RangeInclusive},
    slice,
    time::{Duration, Instant},
};

/// Seed of the pseudo-random tokens.
const SEED: u64 = 0;
/// Number of measured runs of a prompt, after one to warm up.
const PREFILLS: RangeInclusive<usize> = 2..=5;
/// When the runs have taken longer than this, no more than the least number is made.
const PREFILL_TIME: Duration = Duration::from_secs(6);

/// Returns the lengths of the calls in which `generate` consumes a prompt of `tokens` tokens.
pub(super) fn pieces(tokens: usize, parallel: bool) -> impl Iterator<Item = usize> {
    let most = if parallel { PREFILL_CHUNK } else { 1 };
    (0..tokens.div_ceil(most)).map(move |call| most.min(tokens - call * most))
}

/// A model being measured.
struct Bencher<'a> {
    model: &'a mut dyn Model,
    tokens: ChaCha8Rng,
    parallel: bool,
    recurrent: bool,
    /// Receives the parts of the work done and in all before each call, and decides whether to continue.
    watch: &'a mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    done: usize,
    total: usize,
}

/// Measures a model with each prompt length and batch size, then decoding at positions; and the machine before and after.
///
/// `watch` is called before each call of the model with the number of parts of the work that are done and of all parts.
/// If it breaks, the results up to then are returned and marked as incomplete; a part that was begun is dropped.
///
/// # Errors
/// When a list of the plan is empty or contains 0, or when the model or the roofline's own models fail.
pub fn measure(
    model: &mut dyn Model,
    plan: &BenchPlan,
    load: Duration,
    watch: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
) -> Result<Bench, Error> {
    for (name, numbers) in
        [("prompt_tokens", &plan.prompt_tokens[..]), ("batches", &plan.batches), ("new_tokens", &[plan.new_tokens])]
    {
        if numbers.is_empty() || numbers.contains(&0) {
            let problem = format!("expected numbers of at least 1, got {numbers:?}");
            return Err(Error::Input { name: name.to_owned(), problem });
        }
    }
    let bundle = model.bundle().clone();
    let info = model.info().clone();
    let runtime = runtime::registry().choose(runtime::Choice::of(&info), info.device)?;
    let mut bench = Bench {
        version: env!("CARGO_PKG_VERSION"),
        date: plan.date.clone(),
        machine: Machine::here(),
        runtime: info.runtime.name(),
        runtime_version: info.version.to_string(),
        device: info.device.to_string(),
        placement: info.placement.clone(),
        threads: plan.threads.unwrap_or_else(|| runtime.default_threads()),
        bundle: bundle.dir().to_owned(),
        model: words(bundle.architecture()),
        token: inspect::token_cost(&bundle)?,
        load_seconds: load.as_secs_f64(),
        roofline: None,
        runs: Vec::new(),
        positions: Vec::new(),
        peak_resident_bytes: None,
        complete: false,
    };
    let has = |kind: GraphKind| bundle.manifest().graph(kind).is_some();
    let mut bencher = Bencher {
        model,
        tokens: ChaCha8Rng::seed_from_u64(SEED),
        parallel: has(GraphKind::Parallel),
        recurrent: has(GraphKind::Recurrent),
        watch,
        done: 0,
        total: 2 * plan.prompt_tokens.len() * plan.batches.len() + usize::from(!plan.positions.is_empty()) + 2,
    };
    let loading = machine::peak_resident_bytes();
    let dtype = bench.token.dtype;
    let before = bencher.roofline_before(&info, plan.threads, dtype)?;
    let all = bencher.all(plan, &mut bench)?;
    let peaks = bench.runs.iter().map(|run| run.peak_resident_bytes);
    bench.peak_resident_bytes = peaks.chain([loading, machine::peak_resident_bytes()]).flatten().max();
    bench.complete = all.is_some() && bencher.goes_on();
    let after = if bench.complete { Some(Roofline::measure(&info, plan.threads, dtype)?) } else { None };
    if let Some(roofline) = after.map(|after| after.or(before)).or(before) {
        bench.bind(roofline, bundle.manifest());
    }
    Ok(bench)
}

/// A model's family and sizes.
fn words(architecture: &Architecture) -> String {
    let family = architecture.family();
    let sizes = format!("{} layers of {}", family.num_hidden_layers(), family.hidden_size());
    let dense = match family.dense_block_layers() {
        0 => String::new(),
        dense => format!(", m = {dense}"),
    };
    format!("{}, {sizes}{dense}, {} tokens known", family.name(), family.vocab_size())
}

impl Bencher<'_> {
    fn goes_on(&mut self) -> bool {
        (self.watch)(self.done, self.total).is_continue()
    }

    /// Measures the roofline before anything else, as a shared machine may be busier afterwards. Returns none where its
    /// memory would count as the model's.
    fn roofline_before(
        &mut self,
        info: &RuntimeInfo,
        threads: Option<usize>,
        dtype: DType,
    ) -> Result<Option<Roofline>, Error> {
        if !self.goes_on() {
            return Ok(None);
        }
        self.done += 1;
        if machine::forget_peak() { Roofline::measure(info, threads, dtype).map(Some) } else { Ok(None) }
    }

    /// Measures everything but the roofline; returns none if it was stopped.
    fn all(&mut self, plan: &BenchPlan, bench: &mut Bench) -> Result<Option<()>, Error> {
        for &prompt_tokens in &plan.prompt_tokens {
            for &batch in &plan.batches {
                machine::forget_peak();
                let Some((prefill, mut states)) = self.prefill(prompt_tokens, batch)? else { return Ok(None) };
                self.done += 1;
                let Some(decode) = self.decode(slice::from_mut(&mut states), plan.new_tokens)? else { return Ok(None) };
                self.done += 1;
                let peak_resident_bytes = machine::peak_resident_bytes();
                let decode = decode.into_iter().next().map(|seconds| Decode::of(&seconds, batch));
                bench.runs.extend(decode.map(|decode| Run {
                    prompt_tokens,
                    batch,
                    prefill,
                    decode,
                    peak_resident_bytes,
                }));
            }
        }
        if plan.positions.is_empty() {
            return Ok(Some(()));
        }
        let batch = plan.batches[0];
        let Some(mut states) = self.at(&plan.positions, batch)? else { return Ok(None) };
        let Some(seconds) = self.decode(&mut states, plan.new_tokens)? else { return Ok(None) };
        self.done += 1;
        let decoded = seconds.iter().map(|seconds| Decode::of(seconds, batch));
        let at = plan.positions.iter().zip(decoded);
        bench.positions = at.map(|(&position, decode)| AtPosition { position, batch, decode }).collect();
        Ok(Some(()))
    }

    fn prefill(&mut self, tokens: usize, batch: usize) -> Result<Option<(Prefill, States)>, Error> {
        let begin = Instant::now();
        let (mut seconds, mut first, mut last) = (Vec::new(), Vec::new(), None);
        // The first run warms up.
        for run in 0..=*PREFILLS.end() {
            if run > *PREFILLS.start() && begin.elapsed() > PREFILL_TIME {
                break;
            }
            // Freed before the next ones are allocated.
            drop(last.take());
            let start = Instant::now();
            let mut states = self.model.initial_states(batch)?;
            let Some((fed, chosen)) = self.feed(tokens, &mut states, start)? else { return Ok(None) };
            if run > 0 {
                seconds.push(fed.as_secs_f64());
                first.push(chosen.as_secs_f64());
            }
            last = Some(states);
        }
        let (runs, seconds) = (seconds.len(), median(seconds));
        let tokens_per_second = (tokens * batch) as f64 / seconds;
        let prefill =
            Prefill { runs, seconds, tokens_per_second, time_to_first_token_seconds: median(first), bound: None };
        Ok(last.map(|states| (prefill, states)))
    }

    /// Consumes a prompt. Returns the time of the calls, and the time since `start` until every row has its first token.
    fn feed(
        &mut self,
        tokens: usize,
        states: &mut States,
        start: Instant,
    ) -> Result<Option<(Duration, Duration)>, Error> {
        let mut fed = Duration::ZERO;
        let mut calls = pieces(tokens, self.parallel).peekable();
        while let Some(width) = calls.next() {
            if !self.goes_on() {
                return Ok(None);
            }
            let ids = self.draw(states.batch() * width);
            let begin = Instant::now();
            let rows = states.batch();
            let logits = self.call(&ids, width, states)?;
            fed += begin.elapsed();
            if calls.peek().is_none() {
                for row in 0..rows {
                    black_box(argmax(logits.last(row, width)));
                }
            }
        }
        Ok(Some((fed, start.elapsed())))
    }

    /// Decodes `steps` steps with each of several states, after one to warm up, and returns the times of each in seconds.
    ///
    /// The states alternate, so that other load of the machine affects all of them equally.
    fn decode(&mut self, states: &mut [States], steps: usize) -> Result<Option<Vec<Vec<f64>>>, Error> {
        let mut seconds = vec![Vec::new(); states.len()];
        for step in 0..=steps {
            for (states, seconds) in states.iter_mut().zip(&mut seconds) {
                if !self.goes_on() {
                    return Ok(None);
                }
                let ids = self.draw(states.batch());
                let begin = Instant::now();
                self.call(&ids, 1, states)?;
                if step > 0 {
                    seconds.push(begin.elapsed().as_secs_f64());
                }
            }
        }
        Ok(Some(seconds))
    }

    /// Returns states that have consumed one token and count as being at each of the positions.
    fn at(&mut self, positions: &[usize], batch: usize) -> Result<Option<Vec<States>>, Error> {
        let mut states = self.model.initial_states(batch)?;
        if self.feed(1, &mut states, Instant::now())?.is_none() {
            return Ok(None);
        }
        let (read, fingerprint) = (states.snapshot()?, self.model.bundle().fingerprint());
        let place = |&position: &usize| {
            let lengths = vec![position as i64; batch];
            self.model.restore(&Snapshot::new(fingerprint.clone(), lengths, read.tensors().clone()))
        };
        positions.iter().map(place).collect::<Result<_, _>>().map(Some)
    }

    fn call(&mut self, ids: &[i64], width: usize, states: &mut States) -> Result<Logits<'_>, Error> {
        if width == 1 && self.recurrent {
            return self.model.step(ids, states);
        }
        let lengths = vec![width; states.batch()];
        self.model.prefill(&TokenBatch::new(ids, &lengths)?, states)
    }

    fn draw(&mut self, count: usize) -> Vec<i64> {
        let known = self.model.bundle().architecture().vocab_size() as u64;
        iter::repeat_with(|| (self.tokens.next_u64() % known) as i64).take(count).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_is_fed_in_the_pieces_of_generate() {
        assert_eq!(pieces(1100, true).collect::<Vec<_>>(), [512, 512, 76]);
        assert_eq!(pieces(512, true).collect::<Vec<_>>(), [512]);
        assert_eq!(pieces(3, false).collect::<Vec<_>>(), [1, 1, 1]);
    }
}
