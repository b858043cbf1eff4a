//! Parity: a bundle compared with the checkpoint that it was exported from.
//!
//! Every execution mode of every runtime is compared with [`densessm_reference`], which reads the checkpoint itself,
//! computes in f64 and shares no code with the exporter. Where a mode fails, the values inside the graphs are compared
//! in the order of computation, up to the first that is out of tolerance. The tolerances are those of
//! [`proto::tolerance`](crate::proto::tolerance) for the precision in which the device computes: fp32 on processors, that
//! of the bundle on others.
//!
//! The reference computes with the weights as the bundle stores them. What rounding them to half precision changes is a
//! measure of its own.

mod bisect;
mod error;
mod greedy;
mod inspect;
mod measure;
mod modes;
mod report;
mod rounding;

pub use bisect::Mismatch;
pub use error::Error;
pub use greedy::{Divergence, Greedy};
pub use measure::{ComparedValues, ErrorCurve, ErrorPoint, Measure};

use crate::{
    Bundle, Checkpoint, Device, GraphPlacement, LoadOptions, RuntimeInfo,
    proto::{GraphKind, Precision, ShapeProfile},
    runtime,
};
use densessm_reference::{Reference, Tensors};
use serde::Serialize;
use std::ops::ControlFlow;

/// The fewest tokens of a prompt: enough for every execution mode to differ from the others.
const FEWEST_TOKENS: usize = 4;

/// What to compare, and on what.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ParityOptions {
    /// The prompt: at least 4 tokens of the vocabulary.
    pub tokens: Vec<i64>,
    /// The number of tokens to generate greedily after the prompt.
    pub new_tokens: usize,
    /// The number of steps of an additional long run, or 0 for none.
    pub drift: usize,
    /// Whether to measure the error of every layer's output although the bundle passes. This loads every graph a
    /// second time, after the first copy was freed, and runs it on at most 24 tokens, so that it holds no more than
    /// 2 · 24 · layers · hidden size additional values.
    pub by_layer: bool,
    /// The runtimes to compare on.
    pub runtimes: Vec<runtime::Choice>,
    /// The device to run on.
    pub device: Device,
    /// The number of threads within one operator; if absent, the runtime decides.
    pub threads: Option<usize>,
    /// On a GPU: whether steps are captured into CUDA graphs; see [`LoadOptions::with_cuda_graph`].
    pub cuda_graph: bool,
    /// On a GPU: whether this project's operators may run without its kernels for the device; see
    /// [`LoadOptions::with_operator_fallback`].
    pub operator_fallback: bool,
    /// On TensorRT: the sizes for which engines are built; see [`LoadOptions::with_shape_profile`].
    pub shape_profile: ShapeProfile,
}

impl ParityOptions {
    /// Returns options to compare a prompt and 32 greedy tokens after it, on the runtime that is chosen automatically,
    /// on the CPU.
    pub fn new(tokens: Vec<i64>) -> Self {
        Self {
            tokens,
            new_tokens: 32,
            drift: 0,
            by_layer: false,
            runtimes: vec![runtime::Choice::Auto],
            device: Device::CPU,
            threads: None,
            cuda_graph: true,
            operator_fallback: false,
            shape_profile: ShapeProfile::default(),
        }
    }

    fn check(&self, bundle: &Bundle, vocabulary: usize) -> Result<(), Error> {
        let wrong = |what, problem| Err(Error::Options { what, problem });
        let got = bundle.architecture().vocab_size();
        if got != vocabulary {
            return wrong("bundle", format!("expected the checkpoint's vocabulary of {vocabulary} tokens, got {got}"));
        }
        if self.tokens.len() < FEWEST_TOKENS {
            return wrong("prompt", format!("expected {FEWEST_TOKENS} tokens or more, got {}", self.tokens.len()));
        }
        let known = |token: i64| usize::try_from(token).is_ok_and(|token| token < vocabulary);
        match self.tokens.iter().find(|&&token| !known(token)) {
            Some(token) => wrong("prompt", format!("expected tokens from 0 to {}, got {token}", vocabulary - 1)),
            None => Ok(()),
        }
    }
}

/// The outcome of a comparison.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Parity {
    /// The bundle.
    pub bundle: String,
    /// How the bundle stores its matrices.
    pub precision: Precision,
    /// In half precision, the differences of the logits that rounding the weights causes, both computed in f64. They are no
    /// errors of the bundle: whether they are within the precision's tolerance does not affect `passed`.
    pub rounding: Option<Measure>,
    /// The number of tokens of the prompt.
    pub prompt_tokens: usize,
    /// The runtimes that were compared.
    pub runtimes: Vec<ComparedRuntime>,
    /// The logits and states of each execution mode on each runtime.
    pub measures: Vec<Measure>,
    /// The errors of logits by position in the prompt, over all execution modes.
    pub by_position: Vec<ErrorCurve>,
    /// The errors of the layers' outputs by layer; empty unless [`ParityOptions::by_layer`] asks for them.
    pub by_layer: Vec<ErrorCurve>,
    /// Greedy decoding after the prompt on each runtime.
    pub greedy: Vec<Greedy>,
    /// The errors of logits by step over a long run on each runtime; a point is the largest error since the one before.
    pub drift: Vec<ErrorCurve>,
    /// The first value out of tolerance inside each graph of a runtime that fails.
    pub mismatches: Vec<Mismatch>,
    /// Whether everything is within its tolerance.
    pub passed: bool,
}

/// A runtime that was compared.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct ComparedRuntime {
    /// The runtime: `ort` or `tract`.
    pub runtime: &'static str,
    /// Its version.
    pub version: String,
    /// The device, such as `cpu` or `cuda:1`.
    pub device: String,
    /// How it executes the nodes of this project's operators, for each graph; empty if it does not say.
    pub placement: Vec<GraphPlacement>,
}

impl ComparedRuntime {
    fn of(info: &RuntimeInfo) -> Self {
        Self {
            runtime: info.runtime.name(),
            version: info.version.to_string(),
            device: info.device.to_string(),
            placement: info.placement.clone(),
        }
    }
}

impl Parity {
    /// Whether everything that was measured on a runtime is within its tolerance.
    fn passes_on(&self, runtime: &str) -> bool {
        self.measures.iter().filter(|measure| measure.runtime == runtime).all(|measure| measure.passed)
            && self.greedy.iter().filter(|greedy| greedy.runtime == runtime).all(|greedy| greedy.passed)
            && self.drift.iter().filter(|curve| curve.runtime == runtime).all(ErrorCurve::passes)
    }
}

/// Called before each part of a comparison with a description of it; stops the comparison by breaking.
pub type Watch<'w> = &'w mut dyn FnMut(&str) -> ControlFlow<()>;

/// Reads a checkpoint into the reference implementation.
///
/// # Errors
/// When a file, field or tensor is missing or wrong; the error names it.
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
/// The outcome says whether the bundle computes what the checkpoint does; [`Parity::report`] makes a report of it.
///
/// # Errors
/// When the bundle or a runtime cannot be used, an option is out of range, a graph lacks a value that is to be compared
/// inside it, or `watch` stops the comparison. A bundle that computes something else is not an error.
///
/// # Examples
/// ```no_run
/// use densessm::{Bundle, Checkpoint, parity};
/// use std::{ops::ControlFlow, path::Path};
///
/// let bundle = Bundle::open("bundle".as_ref())?;
/// let reference = parity::reference(&Checkpoint::open("checkpoint".as_ref())?)?;
/// let mut options = parity::ParityOptions::new((0..64).collect());
/// options.runtimes = densessm::runtime::ALL.to_vec();
/// options.by_layer = true;
/// let outcome = parity::check(&bundle, &reference, &options, &mut |part| {
///     eprintln!("{part}");
///     ControlFlow::Continue(())
/// })?;
/// outcome.report()?.save(Path::new("parity.html"))?;
/// assert!(outcome.passed, "{:#?}", outcome.mismatches);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn check(
    bundle: &Bundle,
    reference: &Reference,
    options: &ParityOptions,
    watch: Watch<'_>,
) -> Result<Parity, Error> {
    options.check(bundle, reference.vocabulary())?;
    let precision = bundle.manifest().precision;
    let mut parity = Parity {
        bundle: bundle.dir().display().to_string(),
        precision,
        rounding: None,
        prompt_tokens: options.tokens.len(),
        runtimes: Vec::new(),
        measures: Vec::new(),
        by_position: Vec::new(),
        by_layer: Vec::new(),
        greedy: Vec::new(),
        drift: Vec::new(),
        mismatches: Vec::new(),
        passed: true,
    };
    let mut next = |part: String| match watch(&part) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Error::Stopped),
    };
    next("computing the reference in f64".to_owned())?;
    let stored = rounding::stored(reference, precision);
    let arithmetic = rounding::arithmetic(precision, options.device);
    let expected = modes::Expected::new(&stored, &options.tokens, options.new_tokens);
    if precision != Precision::Fp32 {
        parity.rounding = Some(rounding::measure(reference, &expected, precision));
    }
    let reference = &*stored;
    let mut ran = Vec::new();
    for &choice in &options.runtimes {
        next(format!("{}: loading the bundle", choice.name()))?;
        let load = LoadOptions::for_bundle(bundle)
            .with_device(options.device)
            .with_threads(options.threads)
            .with_cuda_graph(options.cuda_graph)
            .with_operator_fallback(options.operator_fallback)
            .with_shape_profile(options.shape_profile);
        let mut model = runtime::load_with(bundle, choice, &load)?;
        parity.runtimes.push(ComparedRuntime::of(model.info()));
        let choice = runtime::Choice::of(model.info());
        let name = choice.name();
        ran.push(choice);
        let mut comparison = modes::Comparison::new(name, &expected, arithmetic);
        for mode in modes::of(bundle) {
            next(format!("{name}: {}", mode.name()))?;
            parity.measures.extend(comparison.run(mode, &mut *model)?);
        }
        parity.by_position.extend(comparison.by_position());
        if bundle.graph_path(GraphKind::Recurrent).is_ok() {
            next(format!("{name}: greedy decoding"))?;
            parity.greedy.push(greedy::compare(&mut *model, name, &expected, arithmetic)?);
            if options.drift > 0 {
                next(format!("{name}: long run"))?;
                let points = modes::drift(&mut *model, reference, options.drift, arithmetic)?;
                parity.drift.push(ErrorCurve { runtime: name.to_owned(), graph: GraphKind::Recurrent, points });
            }
        }
    }
    for choice in ran {
        let name = choice.name();
        if !parity.passes_on(name) {
            parity.passed = false;
            next(format!("{name}: locating the first mismatch"))?;
            let found = bisect::bisect(bundle, reference, &options.tokens, choice, options.device)?;
            parity.mismatches.extend(found);
        }
        if options.by_layer {
            next(format!("{name}: errors by layer"))?;
            let curves = bisect::by_layer(bundle, reference, &options.tokens, choice, options.device)?;
            parity.by_layer.extend(curves);
        }
    }
    Ok(parity)
}
