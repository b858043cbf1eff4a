//! Perplexity and bits per byte of a text.
//!
//! The text is cut into windows of [`EvalOptions::window`] tokens, one of which begins every [`EvalOptions::stride`]
//! tokens, and each of which starts from states of zeros. A token is scored once, by `-log p` given the tokens before it
//! in the first window that contains it and a token before it. So the first window scores all of its tokens but the
//! first, and every later one the last `stride` tokens, each with at least `window - stride` tokens of context. With
//! `stride = window`, windows do not overlap, and the first token of each is not scored. The results are
//!
//! ```text
//! perplexity    = exp(Σ -log p / number of scored tokens)
//! bits per byte = Σ -log p / (ln 2 · bytes of the text that the scored tokens cover)
//! ```
//!
//! Unlike perplexity, bits per byte can be compared between models whose tokenizers differ.
//!
//! The parallel graph is used where it returns the logits of all tokens; otherwise the recurrent one, with several
//! windows in a batch. Either gives the same results.

mod error;
mod report;
mod text;
mod window;

pub use error::Error;
pub use text::TokenizedText;

use crate::{
    Bundle, Model, TokenBatch,
    proto::{GraphKind, LogitsMode},
};
use serde::Serialize;
use std::{f64::consts::LN_2, ops::ControlFlow, time::Instant};
use window::{Window, windows};

/// The bytes that the logits of one call may take.
const LOGITS_BYTES: usize = 128 << 20;

/// How to cut a text into windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EvalOptions {
    /// The number of tokens of a window, at least 2.
    pub window: usize,
    /// The number of tokens from the beginning of one window to that of the next, from 1 to `window`.
    pub stride: usize,
    /// The number of windows in a batch, at least 1. Results do not depend on it.
    pub batch: usize,
}

impl EvalOptions {
    /// Returns options for windows of `window` tokens that do not overlap, 8 in a batch.
    pub fn new(window: usize) -> Self {
        Self { window, stride: window, batch: 8 }
    }

    fn check(&self) -> Result<(), Error> {
        if self.window < 2 {
            return Err(Error::options("window", format!("expected 2 tokens or more, got {}", self.window)));
        }
        if self.stride == 0 || self.stride > self.window {
            let problem = format!("expected 1 to the window's {}, got {}", self.window, self.stride);
            return Err(Error::options("stride", problem));
        }
        if self.batch == 0 {
            return Err(Error::options("batch", "expected 1 or more, got 0".to_owned()));
        }
        Ok(())
    }
}

impl Default for EvalOptions {
    /// Returns options for windows of 512 tokens that do not overlap, 8 in a batch.
    fn default() -> Self {
        Self::new(512)
    }
}

/// The outcome of an evaluation.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Evaluation {
    /// The bundle.
    pub bundle: String,
    /// The runtime.
    pub runtime: String,
    /// The graph that was used.
    pub graph: GraphKind,
    /// The number of tokens of the text.
    pub text_tokens: usize,
    /// The number of tokens of a window.
    pub window: usize,
    /// The number of tokens from the beginning of one window to that of the next.
    pub stride: usize,
    /// The number of tokens scored.
    pub tokens: usize,
    /// The number of bytes of the text that the scored tokens cover, if known.
    pub bytes: Option<usize>,
    /// The mean of `-log p` over the scored tokens.
    pub nats_per_token: f64,
    /// `exp(nats_per_token)`.
    pub perplexity: f64,
    /// The sum of `-log p` over the scored tokens, divided by `ln 2` and `bytes`; none where `bytes` is unknown or 0.
    pub bits_per_byte: Option<f64>,
    /// The time that it took, in seconds.
    pub seconds: f64,
    /// The number of tokens fed per second; where windows overlap, tokens are fed several times.
    pub tokens_per_second: f64,
    /// Whether the whole text was evaluated.
    pub complete: bool,
}

/// Evaluates a model on a text.
///
/// `watch` is called before each batch with the numbers of windows done and in all; breaking stops the evaluation, whose
/// outcome is then that of the windows done.
///
/// # Errors
/// When an option is out of range, the text has fewer than 2 tokens, the bundle holds no suitable graph, or the runtime
/// fails.
///
/// # Examples
/// ```no_run
/// use densessm::{Bundle, Device, Tokenizer, eval, runtime};
/// use std::ops::ControlFlow;
///
/// let bundle = Bundle::open("bundle".as_ref())?;
/// let mut model = runtime::load(&bundle, runtime::Choice::Auto, Device::CPU)?;
/// let text = std::fs::read_to_string("text.txt")?;
/// let text = eval::TokenizedText::new(&Tokenizer::open(bundle.dir())?, &text)?;
/// let mut options = eval::EvalOptions::new(512);
/// options.stride = 256;
/// let outcome = eval::measure(&mut *model, &text, &options, &mut |_, _| ControlFlow::Continue(()))?;
/// println!("perplexity {}, bits per byte {:?}", outcome.perplexity, outcome.bits_per_byte);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn measure(
    model: &mut dyn Model,
    text: &TokenizedText,
    options: &EvalOptions,
    watch: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
) -> Result<Evaluation, Error> {
    options.check()?;
    let tokens = text.tokens();
    if tokens.len() < 2 {
        return Err(Error::options("text", format!("expected 2 tokens or more, got {}", tokens.len())));
    }
    let windows = windows(tokens.len(), options);
    let graph = graph(model.bundle())?;
    let begin = Instant::now();
    let mut score = Score::new(text);
    let (mut fed, mut done) = (0, 0);
    while let Some(next) = windows.get(done) {
        if watch(done, windows.len()).is_break() {
            break;
        }
        // A batch consists of windows of one length; only the last one may be shorter.
        let alike = windows[done..].iter().take(options.batch).take_while(|window| window.len() == next.len());
        let batch = &windows[done..][..alike.count()];
        match graph {
            GraphKind::Parallel => prefill(model, tokens, batch, &mut score)?,
            GraphKind::Recurrent => step(model, tokens, batch, &mut score)?,
        }
        fed += batch.iter().map(Window::len).sum::<usize>();
        done += batch.len();
    }
    let seconds = begin.elapsed().as_secs_f64();
    let nats_per_token = score.nats / score.tokens.max(1) as f64;
    Ok(Evaluation {
        bundle: model.bundle().dir().display().to_string(),
        runtime: model.info().to_string(),
        graph,
        text_tokens: tokens.len(),
        window: options.window,
        stride: options.stride,
        tokens: score.tokens,
        bytes: score.bytes,
        nats_per_token,
        perplexity: nats_per_token.exp(),
        bits_per_byte: score.bytes.filter(|&bytes| bytes > 0).map(|bytes| score.nats / (LN_2 * bytes as f64)),
        seconds,
        tokens_per_second: fed as f64 / seconds,
        complete: done == windows.len(),
    })
}

/// The graph to use: the parallel one if it returns the logits of all tokens.
fn graph(bundle: &Bundle) -> Result<GraphKind, Error> {
    let has = |kind| bundle.graph_path(kind).is_ok();
    match bundle.manifest().logits {
        LogitsMode::All if has(GraphKind::Parallel) => Ok(GraphKind::Parallel),
        _ if has(GraphKind::Recurrent) => Ok(GraphKind::Recurrent),
        _ => {
            let problem = "expected a recurrent graph or the logits of all tokens; export with --mode both or --logits \
                           all";
            Err(Error::options("bundle", problem.to_owned()))
        }
    }
}

/// The scores accumulated so far.
struct Score<'t> {
    text: &'t TokenizedText,
    nats: f64,
    tokens: usize,
    bytes: Option<usize>,
}

impl<'t> Score<'t> {
    fn new(text: &'t TokenizedText) -> Self {
        Self { text, nats: 0.0, tokens: 0, bytes: text.bytes(0).map(|_| 0) }
    }

    /// Scores a token by the logits before it.
    fn add(&mut self, logits: &[f32], token: usize) {
        self.nats += surprisal(logits, self.text.tokens()[token] as usize);
        self.tokens += 1;
        self.bytes = self.bytes.zip(self.text.bytes(token)).map(|(sum, own)| sum + own);
    }
}

/// Feeds a batch of windows to the parallel graph, in pieces whose logits fit into [`LOGITS_BYTES`].
fn prefill(model: &mut dyn Model, tokens: &[i64], batch: &[Window], score: &mut Score<'_>) -> Result<(), Error> {
    let mut states = model.initial_states(batch.len())?;
    let vocabulary = model.bundle().architecture().vocab_size();
    let piece = (LOGITS_BYTES / (size_of::<f32>() * batch.len() * vocabulary)).max(1);
    // The logits of a window's last token predict a token outside it.
    let length = batch.first().map_or(0, |window| window.len() - 1);
    let mut start = 0;
    while start < length {
        let width = piece.min(length - start);
        let row = |window: &Window| &tokens[window.begin + start..][..width];
        let ids: Vec<i64> = batch.iter().flat_map(row).copied().collect();
        let logits = model.prefill(&TokenBatch::new(&ids, &vec![width; batch.len()])?, &mut states)?;
        for (row, window) in batch.iter().enumerate() {
            for offset in 0..width {
                let target = window.begin + start + offset + 1;
                if target >= window.first {
                    score.add(logits.at(row, offset), target);
                }
            }
        }
        start += width;
    }
    Ok(())
}

/// Feeds a batch of windows to the recurrent graph.
fn step(model: &mut dyn Model, tokens: &[i64], batch: &[Window], score: &mut Score<'_>) -> Result<(), Error> {
    let mut states = model.initial_states(batch.len())?;
    // The logits of a window's last token predict a token outside it.
    let length = batch.first().map_or(0, |window| window.len() - 1);
    for offset in 0..length {
        let ids: Vec<i64> = batch.iter().map(|window| tokens[window.begin + offset]).collect();
        let logits = model.step(&ids, &mut states)?;
        for (row, window) in batch.iter().enumerate() {
            let target = window.begin + offset + 1;
            if target >= window.first {
                score.add(logits.at(row, 0), target);
            }
        }
    }
    Ok(())
}

/// `-log softmax(logits)[target]`, in f64.
fn surprisal(logits: &[f32], target: usize) -> f64 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&x| (f64::from(x) - f64::from(largest)).exp()).sum();
    sum.ln() + f64::from(largest) - f64::from(logits[target])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::tolerance::ARITHMETIC_F64;

    #[test]
    fn surprisal_is_that_of_the_distribution() {
        let got = [surprisal(&[0.0; 8], 3), surprisal(&[1e4, 0.0], 1)];
        assert_eq!(ARITHMETIC_F64.compare(&got[..1], &[8_f64.ln()]), Ok(()));
        assert_eq!(ARITHMETIC_F64.compare(&got[1..], &[1e4]), Ok(()));
    }
}
