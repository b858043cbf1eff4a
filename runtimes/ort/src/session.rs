//! Loading a bundle's graphs as sessions on a device.

use crate::{
    device::{cuda_on_stream, index, memory, providers, tensorrt_providers, usable},
    error::{failed, message},
    gpu::{self, Gpu},
    gpu_weights::GpuWeights,
    graph,
    library::Loaded,
    model::OrtModel,
    operators::Operators,
    step::not_captured,
    tensorrt::Engines,
    weights::Weights,
};
use densessm_kernels::cuda::{runs_mamba_step, units::MambaShape};
use densessm_proto::{GraphEntry, GraphKind};
use densessm_session::{Bundle, Error, GraphPlacement, LoadOptions, Model, Provider};
use ort::{
    logging::LogLevel,
    session::{
        Session,
        builder::{GraphOptimizationLevel, SessionBuilder},
    },
};
use std::sync::Arc;

/// The session option that names the folder of the weights of a model that is loaded from memory.
pub(crate) const WEIGHTS_FOLDER: &str = "session.model_external_initializers_file_folder_path";
/// The session option that keeps products' weights as they are.
const NO_PACKING: &str = "session.disable_prepacking";

/// What sessions use without owning it. It must outlive them and everything that keeps them alive.
pub(crate) struct Lent {
    weights: Option<Weights>,
    gpu_weights: Option<GpuWeights>,
    gpu: Option<Arc<Gpu>>,
    /// Whether sessions submit their work to the stream of `gpu`.
    shared: bool,
    /// On TensorRT: where engines are kept.
    engines: Option<Engines>,
}

impl Lent {
    fn open(bundle: &Bundle, options: &LoadOptions, loaded: &Loaded) -> Result<Self, Error> {
        let device = options.device;
        if device.is_cpu() {
            let weights = Some(Weights::open(bundle, &options.graphs)?);
            return Ok(Self { weights, gpu_weights: None, gpu: None, shared: false, engines: None });
        }
        let gpu = Gpu::open(device.index())?;
        let shared = device.provider() == Provider::Cuda;
        let gpu = if shared { with_kernels(gpu, options)? } else { gpu };
        // TensorRT makes its engines of weights that it reads itself.
        let gpu_weights = match shared {
            true => {
                let info = memory(device).map_err(failed("describing memory"))?;
                Some(GpuWeights::upload(bundle, &options.graphs, device, &gpu, &info)?)
            }
            false => None,
        };
        let engines = Engines::open(bundle, options, loaded, gpu.stream().context().info())?;
        Ok(Self { weights: None, gpu_weights, gpu: Some(Arc::new(gpu)), shared, engines })
    }

    /// Returns the GPU in whose memory states are kept; none on the CPU.
    pub(crate) fn gpu(&self) -> Option<&Arc<Gpu>> {
        self.gpu.as_ref()
    }

    /// Returns where engines are kept; none on devices other than TensorRT.
    pub(crate) fn engines(&self) -> Option<&Engines> {
        self.engines.as_ref()
    }

    /// Returns the GPU if sessions submit their work to its stream.
    pub(crate) fn shared_stream(&self) -> Option<&Arc<Gpu>> {
        self.gpu.as_ref().filter(|_| self.shared)
    }
}

/// Makes the kernels available that CUDA sessions need, unless they may do without.
fn with_kernels(gpu: Gpu, options: &LoadOptions) -> Result<Gpu, Error> {
    let index = gpu.index();
    match gpu.with_kernels() {
        Ok(gpu) => Ok(gpu),
        Err(_) if options.operator_fallback => Gpu::open(index),
        Err(error) => Err(gpu::failed("kernels for the GPU")(error)),
    }
}

/// A graph as a session.
pub(crate) struct Opened {
    pub(crate) session: Session,
    /// Whether runs can be captured into CUDA graphs.
    pub(crate) capturable: bool,
    /// How a GPU runs the nodes of this project's operators.
    pub(crate) placement: Option<GraphPlacement>,
}

/// The sessions of a model.
pub(crate) struct Sessions {
    pub(crate) parallel: Option<Opened>,
    pub(crate) recurrent: Option<Opened>,
    /// The step as one operator, for few rows.
    pub(crate) fused: Option<Opened>,
}

impl Sessions {
    /// The session that runs steps of so many rows.
    pub(crate) fn step(&mut self, rows: usize) -> Option<&mut Opened> {
        match &mut self.fused {
            Some(fused) if rows <= MambaShape::MOST_ROWS => Some(fused),
            _ => self.recurrent.as_mut(),
        }
    }
}

/// Loads graphs of a bundle; see [`Runtime::load`](densessm_session::Runtime::load).
pub(crate) fn load(bundle: &Bundle, options: &LoadOptions) -> Result<Box<dyn Model>, Error> {
    options.check()?;
    let loaded = usable(options.device)?;
    let lent = Arc::new(Lent::open(bundle, options, loaded)?);
    let building = lent.engines().and_then(Engines::lock);
    // SAFETY: the model below keeps what is lent as long as its sessions, and the bindings that it makes keep it, too, as
    // those keep their session alive.
    let open_entry = |entry: &GraphEntry| unsafe { open(loaded, bundle, entry, options, &lent) }.map(Some);
    let open = |kind: GraphKind| match options.graphs.contains(&kind) {
        true => open_entry(graph::entry(bundle, kind, options.device)?),
        false => Ok(None),
    };
    let both = || Ok::<_, Error>((open(GraphKind::Parallel)?, open(GraphKind::Recurrent)?));
    let (parallel, recurrent) = match &lent.weights {
        Some(weights) => weights.load_releasing_pages(both)?,
        None => both()?,
    };
    let fused = fused_step(bundle, options, &lent).map_or(Ok(None), open_entry)?;
    drop(building);
    if let Some(kernels) = lent.gpu().and_then(|gpu| gpu.kernels()) {
        kernels.compile_wanted().map_err(gpu::failed("kernels for the GPU"))?;
    }
    let placed: Vec<_> =
        [&parallel, &recurrent, &fused].into_iter().flatten().filter_map(|opened| opened.placement).collect();
    let info = loaded.info(options.device).with_placement(placed);
    let sessions = Sessions { parallel, recurrent, fused };
    Ok(Box::new(OrtModel::new(bundle.clone(), info, sessions, lent, options.cuda_graph_batch)?))
}

/// The fused step of a bundle, if the GPU has a kernel for it.
fn fused_step<'b>(bundle: &'b Bundle, options: &LoadOptions, lent: &Lent) -> Option<&'b GraphEntry> {
    let manifest = bundle.manifest();
    let entry = manifest.fused_step(manifest.precision.matrices())?;
    let kernels = lent.shared_stream().and_then(|gpu| gpu.kernels())?;
    let wanted = options.fused_step && options.graphs.contains(&GraphKind::Recurrent);
    (wanted && runs_mamba_step(kernels, bundle.architecture())).then_some(entry)
}

/// Loads one graph; the recurrent one so that its runs can be captured, if it can be.
///
/// # Safety
/// `lent` must outlive the session and everything that keeps it alive; see [`Weights::lend`].
unsafe fn open(
    loaded: &Loaded,
    bundle: &Bundle,
    entry: &GraphEntry,
    options: &LoadOptions,
    lent: &Lent,
) -> Result<Opened, Error> {
    let wanted = entry.kind == GraphKind::Recurrent && lent.shared && options.cuda_graph_batch > 0;
    // ONNX Runtime rejects the option for a graph of which it must run a part on the CPU.
    if wanted {
        // SAFETY: the caller's obligation.
        match unsafe { session(loaded, bundle, entry, options, lent, true) } {
            Ok((session, placement)) => return Ok(Opened { session, capturable: true, placement }),
            Err(error) => not_captured(error.to_string()),
        }
    }
    // SAFETY: the caller's obligation.
    let (session, placement) = unsafe { session(loaded, bundle, entry, options, lent, false) }?;
    Ok(Opened { session, capturable: false, placement })
}

/// Loads one graph.
///
/// # Safety
/// As for [`open`].
unsafe fn session(
    loaded: &Loaded,
    bundle: &Bundle,
    entry: &GraphEntry,
    options: &LoadOptions,
    lent: &Lent,
    capturable: bool,
) -> Result<(Session, Option<GraphPlacement>), Error> {
    let (file, replaced) = graph::read(bundle, entry, options.device)?;
    let (kind, path) = (entry.kind, &file.path);
    let what = format!("{}: loading into ONNX Runtime", path.display());
    let explain = |problem: String| match lent.engines() {
        Some(engines) => engines.explain(problem),
        None => problem,
    };
    let rejected = |error: ort::Error| Error::Runtime { what: what.clone(), problem: explain(message(&error)) };
    let operators = Operators::of(options.device, lent.gpu().is_some_and(|gpu| gpu.kernels().is_some()));
    let build = || -> ort::Result<SessionBuilder> {
        let device = options.device;
        let providers = match (lent.shared_stream(), lent.engines()) {
            // SAFETY: the stream is lent, and outlives the session.
            (Some(gpu), _) => unsafe { cuda_on_stream(device, gpu.stream(), capturable) },
            (None, Some(engines)) => tensorrt_providers(device, engines.provider(index(device), bundle, kind, path)),
            (None, None) => providers(device),
        };
        let mut builder = Session::builder(&loaded.environment)?
            .with_log_level(LogLevel::Error)?
            .with_optimization_level(GraphOptimizationLevel::All)?
            .with_execution_providers(providers)?;
        if kind == GraphKind::Parallel {
            // A memory pattern is one block for everything that one prompt length needs, kept beside those of other
            // lengths.
            builder = builder.with_memory_pattern(false)?;
        }
        if let Some(threads) = options.threads {
            builder = builder.with_intra_threads(threads)?;
        }
        operators.add_to(builder)
    };
    let builder = build().map_err(rejected)?;
    let mut builder = match &lent.weights {
        // SAFETY: this function's caller keeps the weights.
        Some(weights) => unsafe { weights.lend(builder) }?,
        None => builder,
    };
    if let Some(weights) = &lent.gpu_weights {
        // SAFETY: as above.
        builder = unsafe { weights.lend(builder) }?;
    }
    let session = match lent.weights.as_ref().and_then(|weights| weights.model(kind)) {
        Some(model) => {
            let builder = builder.with_config_entry(NO_PACKING, "1").map_err(|error| rejected(error.into()))?;
            from_memory(builder, bundle, model).map_err(rejected)?
        }
        None if replaced => from_memory(builder, bundle, &graph::encoded(file.clone())).map_err(rejected)?,
        None => builder.commit_from_file(path).map_err(rejected)?,
    };
    let placement = operators.placement(&file, kind, options.device, options.operator_fallback)?;
    Ok((session, placement))
}

/// Loads a graph that differs from the bundle's file.
fn from_memory(builder: SessionBuilder, bundle: &Bundle, model: &[u8]) -> ort::Result<Session> {
    builder.with_config_entry(WEIGHTS_FOLDER, bundle.dir().to_string_lossy())?.commit_from_memory(model)
}
