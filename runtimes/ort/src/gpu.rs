//! The GPU of a model: its context, and the stream on which everything of the model runs in order.

use densessm_cuda::{Context, Driver, Stream};
use densessm_kernels::cuda;
use densessm_session::Error;
use std::{fmt, sync::Arc};

/// A GPU with the stream of one model. Sessions, states and copies share the stream, so that none of them has to wait
/// for another.
pub(crate) struct Gpu {
    stream: Stream,
    index: u32,
    /// Where the kernels are made; none if a session runs without them.
    kernels: Option<Arc<cuda::Device>>,
}

impl fmt::Debug for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gpu").field("index", &self.index).finish_non_exhaustive()
    }
}

impl Gpu {
    /// Opens the GPU with this index.
    ///
    /// # Errors
    /// When the driver is missing or too old, or there is no such GPU.
    pub(crate) fn open(index: u32) -> Result<Self, Error> {
        let open = || Stream::new(&Context::primary(&Driver::open()?, index as usize)?);
        Ok(Self { stream: open().map_err(failed("opening the GPU"))?, index, kernels: None })
    }

    /// Makes the kernels of this GPU available.
    ///
    /// # Errors
    /// When NVRTC is missing, or the GPU is too old for the kernels.
    pub(crate) fn with_kernels(mut self) -> Result<Self, densessm_cuda::Error> {
        self.kernels = Some(cuda::Device::open(self.index as usize)?);
        Ok(self)
    }

    /// Returns where the kernels are made; none if sessions run without them.
    pub(crate) fn kernels(&self) -> Option<&Arc<cuda::Device>> {
        self.kernels.as_ref()
    }

    /// Returns the stream of the model.
    pub(crate) fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Returns CUDA's index of the GPU.
    pub(crate) fn index(&self) -> u32 {
        self.index
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        let _ = self.stream.synchronize();
        if let Some(kernels) = &self.kernels {
            kernels.release_stream(&self.stream);
        }
    }
}

/// Converts an error of the driver during an operation.
pub(crate) fn failed(what: &str) -> impl Fn(densessm_cuda::Error) -> Error {
    let what = what.to_owned();
    move |error| Error::Runtime { what: what.clone(), problem: error.to_string() }
}
