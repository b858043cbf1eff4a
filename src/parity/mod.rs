//! Parity: a bundle held against the checkpoint it was made of.
//!
//! The one design decision: the measure is [`densessm_reference`], which shares nothing with the exporter, in f64 and
//! from the checkpoint; every form in which a prompt can be fed is compared with the same numbers, and where one fails,
//! the graph's inner values are looked at one after the other until the first that is off.

mod bisect;
mod forms;
mod greedy;
mod measure;
mod report;

pub use bisect::Mismatch;
pub use greedy::{Divergence, Greedy};
pub use measure::Measure;

use crate::{Bundle, Checkpoint, Device, LoadOptions, runtime};
use densessm_reference::{Reference, Tensors};
use serde::Serialize;
use std::ops::ControlFlow;

/// The largest error that is let pass: `ABSOLUTE + RELATIVE · max|expected|`, for fp32 bundles. Sums of some hundred
/// terms in another order leave a tenth of it.
pub const ABSOLUTE: f64 = 2e-4;
/// See [`ABSOLUTE`].
pub const RELATIVE: f64 = 3e-4;

/// What to compare.
#[derive(Clone, Debug)]
pub struct ParityOptions {
    /// The prompt.
    pub tokens: Vec<i64>,
    /// Tokens chosen greedily behind it.
    pub new_tokens: usize,
    /// Steps of a long run, or 0.
    pub drift: usize,
    /// The runtimes.
    pub runtimes: Vec<runtime::Choice>,
    /// Where they run.
    pub device: Device,
    /// Threads within one operator; the runtime's own choice if absent.
    pub threads: Option<usize>,
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct Parity {
    /// The bundle.
    pub bundle: String,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Each form on each runtime.
    pub measures: Vec<Measure>,
    /// The greedy texts.
    pub greedy: Vec<Greedy>,
    /// Errors over a long run, `(steps, largest error)`, by runtime.
    pub drift: Vec<(String, Vec<(usize, f64)>)>,
    /// Where failing graphs leave the reference.
    pub found: Vec<Mismatch>,
    /// Whether all checks passed.
    pub passed: bool,
}

/// Why nothing could be compared.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The checkpoint cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] densessm_checkpoint::Error),
    /// The reference does not take it.
    #[error(transparent)]
    Reference(#[from] densessm_reference::Error),
    /// The bundle or a runtime.
    #[error(transparent)]
    Runtime(#[from] densessm_session::Error),
    /// The plan asks for something that cannot be.
    #[error("{0}")]
    ParityOptions(String),
    /// The caller wanted no more.
    #[error("stopped before anything was compared")]
    Stopped,
}

/// Called between checks, with what comes next.
pub type Watch<'w> = &'w mut dyn FnMut(&str) -> ControlFlow<()>;

/// The reference of a checkpoint: `config.json` and all tensors.
///
/// # Errors
/// Naming the file, field or tensor that is missing or wrong.
pub fn reference(checkpoint: &Checkpoint) -> Result<Reference, Error> {
    let path = checkpoint.dir().join("config.json");
    let wrong = |problem: String| densessm_reference::Error::new(path.display().to_string(), problem);
    let bytes = std::fs::read(&path).map_err(|error| wrong(error.to_string()))?;
    let config = serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
    let tensors = checkpoint.tensors().filter(|tensor| tensor.dtype.float().is_some()).map(|tensor| {
        let mut values = vec![0.0; tensor.shape.iter().product()];
        checkpoint.read(tensor, 0, &mut values)?;
        Ok((tensor.name.clone(), tensor.shape.clone(), values))
    });
    let tensors = tensors.collect::<Result<Vec<_>, densessm_checkpoint::Error>>()?;
    let _ = checkpoint.verify(|_| ControlFlow::Continue(()))?;
    Ok(Reference::new(&config, Tensors::new(tensors)?)?)
}

/// Compares a bundle with a checkpoint.
///
/// # Errors
/// When either cannot be read or a runtime cannot be used; a bundle that computes something else is no error.
pub fn check(bundle: &Bundle, reference: &Reference, plan: &ParityOptions, watch: Watch<'_>) -> Result<Parity, Error> {
    let vocabulary = reference.vocabulary();
    if plan.tokens.len() < 4 || plan.tokens.iter().any(|&token| token < 0 || token as usize >= vocabulary) {
        let problem = format!("prompt: expected 4 tokens or more below {vocabulary}, got {}", plan.tokens.len());
        return Err(Error::ParityOptions(problem));
    }
    if bundle.architecture().vocab_size() != vocabulary {
        let got = bundle.architecture().vocab_size();
        return Err(Error::ParityOptions(format!(
            "bundle: expected {vocabulary} tokens as in the checkpoint, got {got}"
        )));
    }
    let mut parity = Parity {
        bundle: bundle.dir().display().to_string(),
        prompt_tokens: plan.tokens.len(),
        measures: Vec::new(),
        greedy: Vec::new(),
        drift: Vec::new(),
        found: Vec::new(),
        passed: true,
    };
    let go_on = |watch: &mut dyn FnMut(&str) -> ControlFlow<()>, next: &str| match watch(next) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Error::Stopped),
    };
    go_on(watch, "the reference, in f64")?;
    let expected = forms::Expected::new(reference, &plan.tokens, plan.new_tokens);
    let mut ran = Vec::new();
    for &choice in &plan.runtimes {
        go_on(watch, &format!("{}: loading", choice.name()))?;
        let options = LoadOptions::for_bundle(bundle).with_device(plan.device).with_threads(plan.threads);
        let mut model = runtime::load_with(bundle, choice, &options)?;
        let choice = runtime::Choice::of(model.info());
        let name = choice.name();
        ran.push(choice);
        for form in forms::of(bundle) {
            go_on(watch, &format!("{name}: {}", form.name()))?;
            parity.measures.extend(form.measure(&mut *model, name, &expected)?);
        }
        if bundle.graph_path(crate::proto::GraphKind::Recurrent).is_ok() {
            go_on(watch, &format!("{name}: greedy text"))?;
            parity.greedy.push(greedy::compare(&mut *model, name, &expected)?);
            if plan.drift > 0 {
                go_on(watch, &format!("{name}: a long run"))?;
                parity.drift.push((name.to_owned(), forms::drift(&mut *model, reference, plan.drift)?));
            }
        }
    }
    let failed = |runtime: &str| {
        parity.measures.iter().any(|m| m.runtime == runtime && !m.passed)
            || parity.greedy.iter().any(|g| g.runtime == runtime && !g.passed)
            || parity.drift.iter().any(|(name, points)| name == runtime && drifted(points))
    };
    for choice in ran {
        let name = choice.name();
        if failed(name) {
            go_on(watch, &format!("{name}: looking for where it goes wrong"))?;
            parity.found.extend(bisect::bisect(bundle, reference, &plan.tokens, choice, plan.device)?);
        }
    }
    parity.passed = !parity.drift.iter().any(|(_, points)| drifted(points))
        && parity.measures.iter().all(|m| m.passed)
        && parity.greedy.iter().all(|greedy| greedy.passed);
    Ok(parity)
}

/// Whether a long run left what is let pass: its errors are parts of that.
fn drifted(points: &[(usize, f64)]) -> bool {
    points.iter().any(|(_, error)| *error > 1.0)
}
