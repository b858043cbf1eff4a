//! Perplexity of a text.
//!
//! The one design decision: whatever graph a bundle holds, the same windows of the text are fed from zero states and the
//! same tokens counted; the parallel graph is used where it returns every token's logits, else the recurrent one, with
//! several windows side by side.

mod report;

use crate::{
    Bundle, Model, TokenBatch,
    proto::{GraphKind, LogitsMode},
};
use serde::Serialize;
use std::{ops::ControlFlow, time::Instant};

/// Bytes that the logits of one call may take.
const LOGITS_BYTES: usize = 128 << 20;

/// How to go through a text.
#[derive(Clone, Copy, Debug)]
pub struct EvalOptions {
    /// Tokens of a window. Its first one is given and not predicted.
    pub window: usize,
    /// Tokens from the beginning of one window to that of the next. Where windows overlap, a token counts in the first
    /// one that predicts it.
    pub stride: usize,
    /// Windows side by side in a step.
    pub batch: usize,
}

/// What came out.
#[derive(Clone, Debug, Serialize)]
pub struct Evaluation {
    /// The bundle.
    pub bundle: String,
    /// The runtime.
    pub runtime: String,
    /// The graph that was used.
    pub graph: String,
    /// Tokens of the text.
    pub text_tokens: usize,
    /// Tokens of a window.
    pub window: usize,
    /// Tokens from window to window.
    pub stride: usize,
    /// Tokens predicted.
    pub tokens: usize,
    /// Mean negative logarithm of their probabilities.
    pub nats_per_token: f64,
    /// `e` to that power.
    pub perplexity: f64,
    /// Time it took.
    pub seconds: f64,
    /// Tokens fed per second.
    pub tokens_per_second: f64,
    /// Whether all of the text was gone through.
    pub complete: bool,
}

/// Why a text has no perplexity.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The runtime.
    #[error(transparent)]
    Runtime(#[from] densessm_session::Error),
    /// The plan or the text.
    #[error("{0}")]
    EvalOptions(String),
}

/// A window of the text, and from which of its tokens on it counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Window {
    begin: usize,
    end: usize,
    /// The first token whose prediction counts.
    first: usize,
}

fn windows(tokens: usize, plan: &EvalOptions) -> Vec<Window> {
    let mut all = Vec::new();
    let (mut begin, mut counted) = (0, 0);
    while counted < tokens {
        let end = tokens.min(begin + plan.window);
        all.push(Window { begin, end, first: counted.max(begin + 1) });
        counted = end;
        begin += plan.stride;
    }
    // A window of one token predicts nothing.
    all.retain(|window| window.first < window.end);
    all
}

/// Goes through a text.
///
/// # Errors
/// When the plan or the text is too short, the bundle holds no graph that can be used, or the runtime fails.
pub fn measure(
    model: &mut dyn Model,
    tokens: &[i64],
    plan: &EvalOptions,
    watch: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
) -> Result<Evaluation, Error> {
    let wrong = |problem: String| Err(Error::EvalOptions(problem));
    if plan.window < 2 {
        return wrong(format!("window: expected 2 tokens or more, got {}", plan.window));
    }
    if plan.stride == 0 || plan.stride > plan.window {
        return wrong(format!("stride: expected 1 to the window's {}, got {}", plan.window, plan.stride));
    }
    if plan.batch == 0 {
        return wrong("batch: expected 1 or more, got 0".to_owned());
    }
    if tokens.len() < 2 {
        return wrong(format!("text: expected 2 tokens or more, got {}", tokens.len()));
    }
    let windows = windows(tokens.len(), plan);
    let begin = Instant::now();
    let graph = graph(model.bundle())?;
    let (mut sum, mut count, mut fed) = (0.0, 0, 0);
    let vocabulary = model.bundle().architecture().vocab_size();
    let batch = match graph {
        GraphKind::Recurrent => plan.batch,
        GraphKind::Parallel => plan.batch.min(LOGITS_BYTES / (4 * plan.window * vocabulary)).max(1),
    };
    let mut done = 0;
    let mut rest = &windows[..];
    while let Some(next) = rest.first() {
        if watch(done, windows.len()).is_break() {
            break;
        }
        // Windows of one length at a time: only the last may be shorter.
        let alike = rest.iter().take(batch).take_while(|window| window.end - window.begin == next.end - next.begin);
        let (group, behind) = rest.split_at(alike.count());
        let mut add = |logits: &[f32], target: i64| {
            sum += surprise(logits, target as usize);
            count += 1;
        };
        match graph {
            GraphKind::Parallel => together(model, tokens, group, &mut add)?,
            GraphKind::Recurrent => step_by_step(model, tokens, group, &mut add)?,
        }
        fed += group.iter().map(|window| window.end - window.begin).sum::<usize>();
        done += group.len();
        rest = behind;
    }
    let seconds = begin.elapsed().as_secs_f64();
    let nats = sum / f64::from(u32::try_from(count.max(1)).unwrap_or(u32::MAX));
    Ok(Evaluation {
        bundle: model.bundle().dir().display().to_string(),
        runtime: model.info().to_string(),
        graph: graph.to_string(),
        text_tokens: tokens.len(),
        window: plan.window,
        stride: plan.stride,
        tokens: count,
        nats_per_token: nats,
        perplexity: nats.exp(),
        seconds,
        tokens_per_second: fed as f64 / seconds,
        complete: rest.is_empty(),
    })
}

fn graph(bundle: &Bundle) -> Result<GraphKind, Error> {
    let has = |kind| bundle.graph_path(kind).is_ok();
    match bundle.manifest().logits {
        LogitsMode::All if has(GraphKind::Parallel) => Ok(GraphKind::Parallel),
        _ if has(GraphKind::Recurrent) => Ok(GraphKind::Recurrent),
        _ => Err(Error::EvalOptions(
            "bundle: expected a recurrent graph or every token's logits; export with --mode both or --logits all"
                .to_owned(),
        )),
    }
}

fn together(
    model: &mut dyn Model,
    tokens: &[i64],
    group: &[Window],
    add: &mut dyn FnMut(&[f32], i64),
) -> Result<(), Error> {
    let ids: Vec<i64> = group.iter().flat_map(|window| &tokens[window.begin..window.end]).copied().collect();
    let lengths: Vec<usize> = group.iter().map(|window| window.end - window.begin).collect();
    let mut states = model.initial_states(group.len())?;
    let logits = model.prefill(&TokenBatch::new(&ids, &lengths)?, &mut states)?;
    for (row, window) in group.iter().enumerate() {
        let before = window.first - 1 - window.begin;
        for (offset, &target) in tokens[window.first..window.end].iter().enumerate() {
            add(logits.at(row, before + offset), target);
        }
    }
    Ok(())
}

fn step_by_step(
    model: &mut dyn Model,
    tokens: &[i64],
    group: &[Window],
    add: &mut dyn FnMut(&[f32], i64),
) -> Result<(), Error> {
    let mut states = model.initial_states(group.len())?;
    let length = group.first().map_or(0, |window| window.end - window.begin);
    for offset in 0..length - 1 {
        let ids: Vec<i64> = group.iter().map(|window| tokens[window.begin + offset]).collect();
        let logits = model.step(&ids, &mut states)?;
        for (row, window) in group.iter().enumerate() {
            let target = window.begin + offset + 1;
            if target >= window.first {
                add(logits.at(row, 0), tokens[target]);
            }
        }
    }
    Ok(())
}

/// `-log softmax(logits)[target]`, in f64.
fn surprise(logits: &[f32], target: usize) -> f64 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&x| (f64::from(x) - f64::from(largest)).exp()).sum();
    sum.ln() + f64::from(largest) - f64::from(logits[target])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_predict_every_token_but_their_first_once() {
        let plan = |window, stride| EvalOptions { window, stride, batch: 1 };
        let counted = |tokens, plan: &EvalOptions| -> Vec<usize> {
            windows(tokens, plan).iter().flat_map(|window| window.first..window.end).collect()
        };
        assert_eq!(counted(10, &plan(4, 4)), [1, 2, 3, 5, 6, 7, 9]);
        assert_eq!(counted(9, &plan(4, 4)), [1, 2, 3, 5, 6, 7]);
        assert_eq!(counted(10, &plan(4, 2)), [1, 2, 3, 4, 5, 6, 7, 8, 9]);
        assert_eq!(counted(3, &plan(512, 512)), [1, 2]);
        assert!(windows(10, &plan(4, 3)).iter().all(|window| window.end - window.begin <= 4));
    }

    #[test]
    fn surprise_is_that_of_the_distribution() {
        assert!((surprise(&[0.0; 8], 3) - 8_f64.ln()).abs() < 1e-12);
        let far = surprise(&[1e4, 0.0], 1);
        assert!((far - 1e4).abs() < 1e-9, "{far}");
    }
}
