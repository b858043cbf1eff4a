//! Counts and times of a scheduler, in the text format of Prometheus.

use std::{
    fmt::Write,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// Upper bounds of the buckets of all histograms, in seconds.
const BOUNDS: [f64; 16] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];

/// What a scheduler has done since it was started, and what it is doing.
#[derive(Debug, Default)]
pub struct Metrics {
    pub(crate) stopped: Counter,
    pub(crate) reached_length: Counter,
    pub(crate) cancelled: Counter,
    pub(crate) timed_out: Counter,
    pub(crate) failed: Counter,
    pub(crate) refused: Counter,
    pub(crate) prompt_tokens: Counter,
    pub(crate) cached_tokens: Counter,
    pub(crate) generated_tokens: Counter,
    pub(crate) steps: Counter,
    pub(crate) cache_hits: Counter,
    pub(crate) cache_misses: Counter,
    pub(crate) cache_evictions: Counter,
    pub(crate) cache_damaged: Counter,
    pub(crate) running: Counter,
    /// Submitted and not admitted: what the limit of the queue applies to.
    pub(crate) waiting: Counter,
    pub(crate) slots: Counter,
    pub(crate) cache_bytes: Counter,
    pub(crate) cache_states: Counter,
    pub(crate) cache_files: Counter,
    pub(crate) cache_folder_bytes: Counter,
    pub(crate) time_to_first_token: Histogram,
    pub(crate) time_per_output_token: Histogram,
    pub(crate) queue_time: Histogram,
}

impl Metrics {
    /// Returns the number of sequences that run: those in the batch and those whose prompt is read.
    pub fn running(&self) -> u64 {
        self.running.get()
    }

    /// Returns the number of requests that wait for a slot.
    pub fn waiting(&self) -> u64 {
        self.waiting.get()
    }

    /// Returns the number of tokens generated.
    pub fn generated_tokens(&self) -> u64 {
        self.generated_tokens.get()
    }

    /// Returns the number of prompts that continued a cached state.
    pub fn cache_hits(&self) -> u64 {
        self.cache_hits.get()
    }

    /// Returns the number of prompt tokens that cached states had consumed.
    pub fn cached_tokens(&self) -> u64 {
        self.cached_tokens.get()
    }

    /// Returns the bytes of the states that the cache keeps in memory.
    pub fn cache_bytes(&self) -> u64 {
        self.cache_bytes.get()
    }

    /// Returns the bytes of the files in the folder of the cache.
    pub fn cache_folder_bytes(&self) -> u64 {
        self.cache_folder_bytes.get()
    }

    /// Returns all metrics in the text format of Prometheus. Every name begins with `densessm_`.
    pub fn prometheus(&self) -> String {
        let mut out = String::new();
        let mut single = |kind: &str, name: &str, help: &str, value: &Counter| {
            header(&mut out, kind, name, help);
            // Writing to a string cannot fail.
            let _ = writeln!(out, "densessm_{name} {}", value.get());
        };
        single("counter", "prompt_tokens_total", "Prompt tokens, cached ones included.", &self.prompt_tokens);
        single("counter", "cached_prompt_tokens_total", "Prompt tokens not read again.", &self.cached_tokens);
        single("counter", "generation_tokens_total", "Generated tokens.", &self.generated_tokens);
        single("counter", "steps_total", "Steps of the batch.", &self.steps);
        single("counter", "cache_hits_total", "Prompts that continued a cached state.", &self.cache_hits);
        single("counter", "cache_misses_total", "Prompts without a cached state.", &self.cache_misses);
        single("counter", "cache_evictions_total", "States removed from memory.", &self.cache_evictions);
        single("counter", "cache_damaged_total", "Damaged files removed from the folder.", &self.cache_damaged);
        single("gauge", "num_requests_running", "Sequences that run.", &self.running);
        single("gauge", "num_requests_waiting", "Requests that wait for a slot.", &self.waiting);
        single("gauge", "slots", "Maximum number of sequences that run.", &self.slots);
        single("gauge", "cache_bytes", "Bytes of cached states in memory.", &self.cache_bytes);
        single("gauge", "cache_states", "Cached states in memory.", &self.cache_states);
        single("gauge", "cache_files", "Cached states on disk.", &self.cache_files);
        single("gauge", "cache_folder_bytes", "Bytes of cached states on disk.", &self.cache_folder_bytes);
        header(
            &mut out,
            "counter",
            "requests_total",
            "Choices that ended, and requests that were refused, by outcome.",
        );
        let outcomes = [
            ("stop", &self.stopped),
            ("length", &self.reached_length),
            ("cancelled", &self.cancelled),
            ("timeout", &self.timed_out),
            ("failed", &self.failed),
            ("refused", &self.refused),
        ];
        for (outcome, count) in outcomes {
            let _ = writeln!(out, "densessm_requests_total{{outcome=\"{outcome}\"}} {}", count.get());
        }
        let histograms = [
            ("time_to_first_token_seconds", "From submission to the first token.", &self.time_to_first_token),
            ("time_per_output_token_seconds", "Between two tokens of a sequence.", &self.time_per_output_token),
            ("queue_time_seconds", "From submission to a slot.", &self.queue_time),
        ];
        for (name, help, histogram) in histograms {
            header(&mut out, "histogram", name, help);
            histogram.write(&mut out, name);
        }
        out
    }
}

fn header(out: &mut String, kind: &str, name: &str, help: &str) {
    let _ = writeln!(out, "# HELP densessm_{name} {help}\n# TYPE densessm_{name} {kind}");
}

/// A number that any thread reads and adds to.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// Adds 1 unless the value has reached a limit, and returns whether it did.
    pub(crate) fn add_below(&self, limit: u64) -> bool {
        let next = |value: u64| (value < limit).then_some(value + 1);
        self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, next).is_ok()
    }

    pub(crate) fn subtract(&self, count: u64) {
        self.0.fetch_sub(count, Ordering::AcqRel);
    }

    pub(crate) fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A histogram over times.
#[derive(Debug, Default)]
pub(crate) struct Histogram {
    /// One count per bound, and one for what exceeds all of them.
    counts: [AtomicU64; BOUNDS.len() + 1],
    microseconds: AtomicU64,
}

impl Histogram {
    pub(crate) fn observe(&self, time: Duration) {
        let seconds = time.as_secs_f64();
        let bucket = BOUNDS.iter().position(|&bound| seconds <= bound).unwrap_or(BOUNDS.len());
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        self.microseconds.fetch_add(u64::try_from(time.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn write(&self, out: &mut String, name: &str) {
        let mut total = 0;
        let bounds = BOUNDS.iter().map(ToString::to_string).chain(["+Inf".to_owned()]);
        for (bound, count) in bounds.zip(&self.counts) {
            total += count.load(Ordering::Relaxed);
            let _ = writeln!(out, "densessm_{name}_bucket{{le=\"{bound}\"}} {total}");
        }
        let sum = self.microseconds.load(Ordering::Relaxed) as f64 / 1e6;
        let _ = writeln!(out, "densessm_{name}_sum {sum}\ndensessm_{name}_count {total}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative_and_end_with_the_count() {
        let metrics = Metrics::default();
        for milliseconds in [1, 3, 400, 1_000_000] {
            metrics.time_to_first_token.observe(Duration::from_millis(milliseconds));
        }
        let text = metrics.prometheus();
        for line in [
            "densessm_time_to_first_token_seconds_bucket{le=\"0.001\"} 1",
            "densessm_time_to_first_token_seconds_bucket{le=\"0.005\"} 2",
            "densessm_time_to_first_token_seconds_bucket{le=\"300\"} 3",
            "densessm_time_to_first_token_seconds_bucket{le=\"+Inf\"} 4",
            "densessm_time_to_first_token_seconds_sum 1000.404",
            "densessm_time_to_first_token_seconds_count 4",
            "# TYPE densessm_time_to_first_token_seconds histogram",
            "densessm_requests_total{outcome=\"refused\"} 0",
        ] {
            assert!(text.lines().any(|got| got == line), "{line}: {text}");
        }
    }
}
