//! Choosing the runtime a bundle is loaded on.

use densessm_session::{Availability, Bundle, Device, Error, LoadOptions, Model};

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
