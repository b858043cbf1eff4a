//! Loading a bundle's graphs as sessions on a device.

use crate::{
    library::{self, Loaded},
    model::OrtModel,
    weights::Weights,
};
use densessm_proto::GraphKind;
use densessm_session::{Availability, Bundle, Device, Error, LoadOptions, Model, RuntimeInfo};
use ort::{
    ep::{CUDA, ExecutionProvider, ExecutionProviderDispatch, TensorRT},
    logging::LogLevel,
    memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType},
    session::{
        Session,
        builder::{GraphOptimizationLevel, SessionBuilder},
    },
};
use std::sync::{Arc, Mutex};

/// Loads graphs of a bundle.
///
/// # Errors
/// When ONNX Runtime or the device cannot be used, or ONNX Runtime does not take a graph.
pub fn load(bundle: &Bundle, options: &LoadOptions) -> Result<Box<dyn Model>, Error> {
    if options.threads == Some(0) {
        let problem = "expected at least 1, got 0".to_owned();
        return Err(Error::Unusable { what: "threads".to_owned(), problem });
    }
    let loaded = library::loaded()?;
    usable(options.device)?;
    // A card has memory of its own, and kernels for standard operators only.
    let weights = match options.device {
        Device::Cpu => Some(Arc::new(Weights::open(bundle, &options.graphs)?)),
        Device::Cuda | Device::TensorRt => None,
    };
    let open = |kind: GraphKind| match options.graphs.contains(&kind) {
        true => session(loaded, bundle, kind, options, weights.as_deref()).map(Some),
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
    let allocator = state_allocator(any, options.device).map_err(failed("allocating on the device"))?;
    let info = RuntimeInfo { runtime: "ort", version: loaded.version.clone(), device: options.device };
    let allocator = Arc::new(Mutex::new(allocator));
    Ok(Box::new(OrtModel::new(bundle.clone(), info, parallel, recurrent, allocator, weights)?))
}

/// Whether ONNX Runtime can be used here on a device.
pub fn availability(device: Device) -> Availability {
    let checked = library::loaded().and_then(|loaded| usable(device).map(|()| loaded));
    match checked {
        Ok(loaded) => Availability::Usable(format!("ONNX Runtime {} at {}", loaded.version, loaded.path.display())),
        Err(Error::Unusable { what, problem }) => Availability::Unusable(format!("{what}: {problem}")),
        Err(other) => Availability::Unusable(other.to_string()),
    }
}

/// Whether this build of ONNX Runtime has a device's provider and the device answers.
pub(crate) fn usable(device: Device) -> Result<(), Error> {
    let (present, provider) = match device {
        Device::Cpu => return Ok(()),
        Device::Cuda => (CUDA::is_available(), cuda()),
        Device::TensorRt => (TensorRT::is_available(), TensorRT::default().build()),
    };
    let unusable = |problem: String| Err(Error::Unusable { what: format!("ONNX Runtime on {device}"), problem });
    if !present.unwrap_or(false) {
        let loaded = library::loaded()?;
        return unusable(format!(
            "{} (version {}) was built without it; `pip install onnxruntime-gpu` or set ORT_DYLIB_PATH",
            loaded.path.display(),
            loaded.version
        ));
    }
    let loaded = library::loaded()?;
    let registered = Session::builder(&loaded.environment)
        .and_then(|builder| Ok(builder.with_execution_providers([provider.error_on_failure()])?));
    match registered {
        Ok(_) => Ok(()),
        Err(error) => unusable(words(&error.to_string())),
    }
}

pub(crate) fn providers(device: Device) -> Vec<ExecutionProviderDispatch> {
    match device {
        Device::Cpu => Vec::new(),
        Device::Cuda => vec![cuda().error_on_failure()],
        // What TensorRT does not take runs on the same card through CUDA.
        Device::TensorRt => vec![TensorRT::default().build().error_on_failure(), cuda().error_on_failure()],
    }
}

/// CUDA, with products in fp32: its default rounds their factors to TF32's ten bits, which costs a model of some layers
/// three of its seven digits.
pub(crate) fn cuda() -> ExecutionProviderDispatch {
    CUDA::default().with_tf32(false).build()
}

fn session(
    loaded: &Loaded,
    bundle: &Bundle,
    kind: GraphKind,
    options: &LoadOptions,
    weights: Option<&Weights>,
) -> Result<Session, Error> {
    let path = bundle.graph_path(kind)?;
    let what = format!("{}: loading into ONNX Runtime", path.display());
    let failed = |error: ort::Error| Error::Runtime { what: what.clone(), problem: words(&error.to_string()) };
    let build = || -> ort::Result<SessionBuilder> {
        let mut builder = Session::builder(&loaded.environment)?
            .with_log_level(LogLevel::Error)?
            .with_optimization_level(GraphOptimizationLevel::All)?
            .with_execution_providers(providers(options.device))?;
        if kind == GraphKind::Parallel {
            // A pattern is one block for all that one length of prompt needs, held beside the blocks of other lengths.
            builder = builder.with_memory_pattern(false)?;
        }
        if let Some(threads) = options.threads {
            builder = builder.with_intra_threads(threads)?;
        }
        if options.device == Device::Cpu {
            builder = builder.with_operators(densessm_ort_operators::domain()?)?;
        }
        Ok(builder)
    };
    let builder = build().map_err(failed)?;
    let mut builder = match weights {
        Some(weights) => weights.lend(builder)?,
        None => builder,
    };
    builder.commit_from_file(&path).map_err(failed)
}

/// Where states live: in the device's own memory.
fn state_allocator(session: &Session, device: Device) -> ort::Result<Allocator> {
    match device {
        Device::Cpu => Ok(Allocator::default()),
        Device::Cuda | Device::TensorRt => {
            let memory = MemoryInfo::new(AllocationDevice::CUDA, 0, AllocatorType::Device, MemoryType::Default)?;
            Allocator::new(session, memory)
        }
    }
}

/// An error of ONNX Runtime while it was doing something.
pub(crate) fn failed(what: &str) -> impl Fn(ort::Error) -> Error {
    let what = format!("ONNX Runtime: {what}");
    move |error| Error::Runtime { what: what.clone(), problem: words(&error.to_string()) }
}

/// ONNX Runtime's own words: the first line, without the place in its source that it names before them.
fn words(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    line.rsplit_once(" : FAIL : ").map_or(line, |(_, words)| words).to_owned()
}
