//! Choosing the runtime a bundle is loaded on.

use densessm_proto::GraphKind;
use densessm_session::{Availability, Bundle, Device, Error, LoadOptions, Model, Probe, Product, RuntimeInfo};
use std::{num::NonZero, thread, time::Duration};

/// Which runtime to load a bundle on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// ONNX Runtime if one is found, else tract. [`Model::info`] says which it was.
    Auto,
    /// ONNX Runtime.
    Ort,
    /// tract.
    Tract,
}

/// The runtimes there are, best first.
pub const ALL: [Choice; 2] = [Choice::Ort, Choice::Tract];

impl Choice {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Ort => "ort",
            Self::Tract => "tract",
        }
    }

    /// The runtime that a model runs on.
    pub fn of(info: &RuntimeInfo) -> Self {
        if info.runtime == Self::Tract.name() { Self::Tract } else { Self::Ort }
    }

    /// Whether it comes to ONNX Runtime on a device.
    fn is_ort(self, device: Device) -> bool {
        let found = || matches!(densessm_ort::availability(device), Availability::Usable(_));
        self == Self::Ort || self == Self::Auto && (device != Device::Cpu || found())
    }

    /// Whether this runtime can be used here on a device; of [`Choice::Auto`], whether any can.
    pub fn availability(self, device: Device) -> Availability {
        match self {
            Self::Ort => densessm_ort::availability(device),
            Self::Tract => densessm_tract::availability(device),
            Self::Auto => match densessm_ort::availability(device) {
                Availability::Unusable(_) => densessm_tract::availability(device),
                usable => usable,
            },
        }
    }
}

/// Threads that one operator of a runtime runs on, if the number was left open.
///
/// ONNX Runtime then takes the processor's cores (here: what the system gives this process), tract the calling thread.
pub fn threads(choice: Choice) -> usize {
    match choice {
        Choice::Tract => 1,
        Choice::Ort | Choice::Auto => thread::available_parallelism().map_or(1, NonZero::get),
    }
}

/// The time of a matrix product on a runtime at its best, tried for half a second.
///
/// On a card, input and output stay in its memory, so that a product of one row shows how fast the card reads weights.
///
/// # Errors
/// When the runtime or the device cannot be used here, or has no room for the product.
pub fn time_product(
    product: Product,
    choice: Choice,
    device: Device,
    threads: Option<usize>,
) -> Result<Duration, Error> {
    let budget = Duration::from_millis(500);
    match densessm_tract::availability(device) {
        _ if choice.is_ort(device) => densessm_ort::time_product(product, device, threads, budget),
        Availability::Usable(_) => densessm_tract::time_product(product, threads, budget),
        Availability::Unusable(problem) => Err(Error::Unusable { what: device.to_string(), problem }),
    }
}

/// A graph of a bundle whose inner values can be seen.
///
/// # Errors
/// When the runtime or the device cannot be used here, or the runtime does not take the graph.
pub fn probe(
    bundle: &Bundle,
    choice: Choice,
    device: Device,
    kind: GraphKind,
    names: &[String],
) -> Result<Box<dyn Probe>, Error> {
    match densessm_tract::availability(device) {
        _ if choice.is_ort(device) => densessm_ort::probe(bundle, device, kind, names),
        Availability::Usable(_) => densessm_tract::probe(bundle, kind, names),
        Availability::Unusable(problem) => Err(Error::Unusable { what: device.to_string(), problem }),
    }
}

/// Loads every graph of a bundle.
///
/// # Errors
/// When the runtime or the device cannot be used here, or the runtime does not take the bundle.
pub fn load(bundle: &Bundle, choice: Choice, device: Device) -> Result<Box<dyn Model>, Error> {
    load_with(bundle, choice, &LoadOptions { device, ..LoadOptions::for_bundle(bundle) })
}

/// Loads a bundle as `options` say.
///
/// [`Choice::Auto`] looks for a runtime; it does not try a second one when the first fails to load the bundle, and on
/// a device other than the CPU there is ONNX Runtime only.
///
/// # Errors
/// When the runtime or the device cannot be used here, or the runtime does not take the bundle.
pub fn load_with(bundle: &Bundle, choice: Choice, options: &LoadOptions) -> Result<Box<dyn Model>, Error> {
    match choice {
        Choice::Ort => densessm_ort::load(bundle, options),
        Choice::Tract => densessm_tract::load(bundle, options),
        Choice::Auto if options.device != Device::Cpu => densessm_ort::load(bundle, options),
        Choice::Auto => match densessm_ort::availability(options.device) {
            Availability::Usable(_) => densessm_ort::load(bundle, options),
            Availability::Unusable(_) => densessm_tract::load(bundle, options),
        },
    }
}
