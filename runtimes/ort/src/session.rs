//! Loading a bundle's graphs as sessions on a device.

use crate::{
    device::{allocator, providers, usable},
    error::{failed, message},
    library::Loaded,
    model::OrtModel,
    weights::Weights,
};
use densessm_proto::GraphKind;
use densessm_session::{Bundle, Error, LoadOptions, Model};
use ort::{
    logging::LogLevel,
    session::{
        Session,
        builder::{GraphOptimizationLevel, SessionBuilder},
    },
};
use std::sync::{Arc, Mutex};

/// Loads graphs of a bundle; see [`Runtime::load`](densessm_session::Runtime::load).
pub(crate) fn load(bundle: &Bundle, options: &LoadOptions) -> Result<Box<dyn Model>, Error> {
    options.check()?;
    let loaded = usable(options.device)?;
    // GPUs have memory of their own, and kernels for standard operators only.
    let weights = match options.device.is_cpu() {
        true => Some(Arc::new(Weights::open(bundle, &options.graphs)?)),
        false => None,
    };
    let open = |kind: GraphKind| match options.graphs.contains(&kind) {
        // SAFETY: the model below keeps the weights as long as its sessions, and the bindings that it makes keep them,
        // too, as those keep their session alive.
        true => unsafe { session(loaded, bundle, kind, options, weights.as_deref()) }.map(Some),
        false => Ok(None),
    };
    let both = || Ok::<_, Error>((open(GraphKind::Parallel)?, open(GraphKind::Recurrent)?));
    let (parallel, recurrent) = match &weights {
        Some(weights) => weights.load_releasing_pages(both)?,
        None => both()?,
    };
    let Some(any) = parallel.as_ref().or(recurrent.as_ref()) else {
        let problem = "expected a graph to load, got none".to_owned();
        return Err(Error::Input { name: "graphs".to_owned(), problem });
    };
    let allocator = allocator(any, options.device).map_err(failed("allocating on the device"))?;
    let info = loaded.info(options.device);
    let allocator = Arc::new(Mutex::new(allocator));
    Ok(Box::new(OrtModel::new(bundle.clone(), info, parallel, recurrent, allocator, weights)?))
}

/// Loads one graph.
///
/// # Safety
/// `weights` must outlive the session and everything that keeps it alive; see [`Weights::lend`].
unsafe fn session(
    loaded: &Loaded,
    bundle: &Bundle,
    kind: GraphKind,
    options: &LoadOptions,
    weights: Option<&Weights>,
) -> Result<Session, Error> {
    let path = bundle.graph_path(kind)?;
    let what = format!("{}: loading into ONNX Runtime", path.display());
    let failed = |error: ort::Error| Error::Runtime { what: what.clone(), problem: message(&error) };
    let build = || -> ort::Result<SessionBuilder> {
        let mut builder = Session::builder(&loaded.environment)?
            .with_log_level(LogLevel::Error)?
            .with_optimization_level(GraphOptimizationLevel::All)?
            .with_execution_providers(providers(options.device))?;
        if kind == GraphKind::Parallel {
            // A memory pattern is one block for everything that one prompt length needs, kept beside those of other
            // lengths.
            builder = builder.with_memory_pattern(false)?;
        }
        if let Some(threads) = options.threads {
            builder = builder.with_intra_threads(threads)?;
        }
        if options.device.is_cpu() {
            builder = builder.with_operators(densessm_ort_operators::domain()?)?;
        }
        Ok(builder)
    };
    let builder = build().map_err(failed)?;
    let mut builder = match weights {
        // SAFETY: this function's caller keeps the weights.
        Some(weights) => unsafe { weights.lend(builder) }?,
        None => builder,
    };
    builder.commit_from_file(&path).map_err(failed)
}
