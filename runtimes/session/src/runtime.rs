//! The trait that every runtime implements, and the choice among those that a build contains.

use crate::{
    Bundle, Device, Error, LoadOptions, Model, Probe, Product, RuntimeId, RuntimeInfo, Unusable, UnusableReason,
};
use densessm_proto::GraphKind;
use std::{num::NonZero, thread, time::Duration};

/// A library that runs ONNX graphs.
///
/// Implementations are stateless values: what is loaded once for a process (a shared library, an environment) they keep
/// to themselves.
pub trait Runtime: Send + Sync {
    /// Returns the runtime's identity.
    fn id(&self) -> RuntimeId;

    /// Returns whether the runtime can be used here on a device: its version and origin, or why not and what to do.
    ///
    /// # Errors
    /// When it cannot be used.
    fn availability(&self, device: Device) -> Result<RuntimeInfo, Unusable>;

    /// Loads graphs of a bundle.
    ///
    /// # Errors
    /// When the runtime cannot be used on the device, the options are invalid ([`LoadOptions::check`]), the bundle lacks
    /// one of the graphs, or the runtime rejects a graph.
    fn load(&self, bundle: &Bundle, options: &LoadOptions) -> Result<Box<dyn Model>, Error>;

    /// Loads one graph of a bundle so that the values of `names` that exist inside it are returned with its outputs.
    ///
    /// # Errors
    /// When the runtime cannot be used on the device, or rejects the graph.
    fn probe(
        &self,
        bundle: &Bundle,
        graph: GraphKind,
        device: Device,
        names: &[String],
    ) -> Result<Box<dyn Probe>, Error>;

    /// Runs a matrix product repeatedly for `budget` and returns the time of one run as [`min_time`](crate::min_time)
    /// finds it.
    ///
    /// On a GPU, input and output stay in its memory, so that a product of one row shows how fast weights are read.
    ///
    /// # Errors
    /// When the runtime cannot be used on the device, it does not compute products of this element type, `threads` is 0,
    /// or there is no memory for the product.
    fn time_product(
        &self,
        product: Product,
        device: Device,
        threads: Option<usize>,
        budget: Duration,
    ) -> Result<Duration, Error>;

    /// Measures the bytes per second that a device reads of its own memory, with reads repeated for `budget`. Returns none
    /// if the runtime has no means to measure that, as by default.
    ///
    /// # Errors
    /// When the runtime cannot be used on the device, or there is no memory to read.
    fn read_bandwidth(&self, device: Device, budget: Duration) -> Result<Option<f64>, Error> {
        let _ = (device, budget);
        Ok(None)
    }

    /// Returns the number of threads that one operator runs on if [`LoadOptions::threads`] is absent: the processors
    /// that the system gives this process, unless the runtime says otherwise.
    fn default_threads(&self) -> usize {
        thread::available_parallelism().map_or(1, NonZero::get)
    }
}

/// Which runtime to load a bundle on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Choice {
    /// The first runtime of the registry that can be used on the device. [`Model::info`] returns which one it was.
    #[default]
    Auto,
    /// ONNX Runtime.
    Ort,
    /// tract.
    Tract,
    /// A runtime of another crate, by its name.
    Other(&'static str),
}

impl Choice {
    /// Returns the name on the command line: `auto`, or the runtime's.
    pub fn name(self) -> &'static str {
        self.id().map_or("auto", RuntimeId::name)
    }

    /// Returns the runtime; none for [`Choice::Auto`].
    pub fn id(self) -> Option<RuntimeId> {
        match self {
            Self::Auto => None,
            Self::Ort => Some(RuntimeId::Ort),
            Self::Tract => Some(RuntimeId::Tract),
            Self::Other(name) => Some(RuntimeId::Other(name)),
        }
    }

    /// Returns the choice of the runtime that a model runs on.
    pub fn of(info: &RuntimeInfo) -> Self {
        info.runtime.into()
    }
}

impl From<RuntimeId> for Choice {
    fn from(id: RuntimeId) -> Self {
        match id {
            RuntimeId::Ort => Self::Ort,
            RuntimeId::Tract => Self::Tract,
            RuntimeId::Other(name) => Self::Other(name),
        }
    }
}

/// The runtimes of a build, in order of preference.
#[derive(Clone, Copy)]
pub struct Registry {
    runtimes: &'static [&'static dyn Runtime],
}

impl Registry {
    /// Makes a registry of runtimes, the preferred one first.
    pub const fn new(runtimes: &'static [&'static dyn Runtime]) -> Self {
        Self { runtimes }
    }

    /// Returns the runtimes, the preferred one first.
    pub fn runtimes(&self) -> impl Iterator<Item = &'static dyn Runtime> + use<> {
        self.runtimes.iter().copied()
    }

    /// Returns a runtime by its identity; none if the build does not contain it.
    pub fn get(&self, id: RuntimeId) -> Option<&'static dyn Runtime> {
        self.runtimes().find(|runtime| runtime.id() == id)
    }

    /// Returns the runtime to use on a device.
    ///
    /// [`Choice::Auto`] takes the first runtime that can be used on the device. It does not depend on the bundle: if that
    /// runtime rejects the bundle, loading fails. A runtime named explicitly is returned whether or not it can be used;
    /// its own functions then return the reason.
    ///
    /// # Errors
    /// When the build does not contain the runtime, or none can be used on the device.
    pub fn choose(&self, choice: Choice, device: Device) -> Result<&'static dyn Runtime, Error> {
        if let Some(id) = choice.id() {
            let missing = || Unusable::new(id, device, UnusableReason::NotCompiled);
            return self.get(id).ok_or_else(|| missing().into());
        }
        let mut tried = Vec::new();
        for runtime in self.runtimes() {
            match runtime.availability(device) {
                Ok(_) => return Ok(runtime),
                Err(unusable) => tried.push(unusable),
            }
        }
        Err(Error::NoRuntime { device, tried })
    }
}
