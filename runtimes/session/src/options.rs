//! How a bundle is loaded.

use crate::{Bundle, Device, Error};
use densessm_proto::{GraphKind, ShapeProfile};

/// Which graphs of a bundle to load, where, and on how many threads.
///
/// ```
/// # fn example(bundle: &densessm_session::Bundle) {
/// use densessm_session::{Device, LoadOptions};
///
/// let options = LoadOptions::for_bundle(bundle).with_device(Device::cuda(1)).with_threads(4);
/// # }
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LoadOptions {
    /// The graphs to load; the bundle must contain them.
    pub graphs: Vec<GraphKind>,
    /// The device to run on.
    pub device: Device,
    /// Threads within one operator; the runtime's default if absent.
    pub threads: Option<usize>,
    /// On a GPU: the largest batch whose steps are captured into CUDA graphs, which are launched as a whole; 0 for none.
    pub cuda_graph_batch: usize,
    /// On a GPU: whether operators of this project may run without its kernels for the device, as functions of standard
    /// operators or on the CPU. If not, that is an error.
    pub operator_fallback: bool,
    /// On a GPU: whether steps of few rows run as one kernel, where the bundle contains the fused step and the GPU has the
    /// kernel.
    pub fused_step: bool,
    /// On TensorRT: the sizes for which engines are built. A call with another size is an error.
    pub shape_profile: ShapeProfile,
}

/// The largest batch whose steps are captured by default.
const CUDA_GRAPH_BATCH: usize = 64;

impl LoadOptions {
    /// Returns options that load every graph of a bundle on the processor.
    pub fn for_bundle(bundle: &Bundle) -> Self {
        let graphs = bundle.manifest().graphs.iter().map(|graph| graph.kind).collect();
        Self {
            graphs,
            device: Device::CPU,
            threads: None,
            cuda_graph_batch: CUDA_GRAPH_BATCH,
            operator_fallback: false,
            fused_step: true,
            shape_profile: ShapeProfile::default(),
        }
    }

    /// Sets the graphs to load.
    pub fn with_graphs(mut self, graphs: impl Into<Vec<GraphKind>>) -> Self {
        self.graphs = graphs.into();
        self
    }

    /// Sets the device.
    pub fn with_device(mut self, device: Device) -> Self {
        self.device = device;
        self
    }

    /// Sets the number of threads within one operator; `None` is the runtime's default.
    pub fn with_threads(mut self, threads: impl Into<Option<usize>>) -> Self {
        self.threads = threads.into();
        self
    }

    /// Sets whether steps on a GPU are captured into CUDA graphs. They compute the same either way.
    pub fn with_cuda_graph(self, enabled: bool) -> Self {
        self.with_cuda_graph_batch(if enabled { CUDA_GRAPH_BATCH } else { 0 })
    }

    /// Sets the largest batch whose steps on a GPU are captured into CUDA graphs; 0 captures none.
    pub fn with_cuda_graph_batch(mut self, rows: usize) -> Self {
        self.cuda_graph_batch = rows;
        self
    }

    /// Sets whether operators of this project may run on a GPU without its kernels.
    pub fn with_operator_fallback(mut self, allowed: bool) -> Self {
        self.operator_fallback = allowed;
        self
    }

    /// Sets whether steps of few rows run as one kernel on GPUs that have it.
    pub fn with_fused_step(mut self, enabled: bool) -> Self {
        self.fused_step = enabled;
        self
    }

    /// Sets the sizes for which engines are built on TensorRT.
    pub fn with_shape_profile(mut self, profile: ShapeProfile) -> Self {
        self.shape_profile = profile;
        self
    }

    /// Checks what does not depend on the runtime: that there is a graph to load and a thread to run it on.
    ///
    /// # Errors
    /// Naming the option that is invalid.
    pub fn check(&self) -> Result<(), Error> {
        if self.graphs.is_empty() {
            let problem = "expected a graph to load, got none".to_owned();
            return Err(Error::Input { name: "graphs".to_owned(), problem });
        }
        check_threads(self.threads)
    }
}

/// Checks that a number of threads, if one is given, is at least 1.
///
/// # Errors
/// When it is 0.
pub fn check_threads(threads: Option<usize>) -> Result<(), Error> {
    match threads {
        Some(0) => Err(Error::Input { name: "threads".to_owned(), problem: "expected at least 1, got 0".to_owned() }),
        _ => Ok(()),
    }
}
