//! The runtimes of this build: those of the cargo features `ort` and `tract`.
//!
//! What can be done with them is in their common trait, [`Runtime`]; the functions here look a runtime up in
//! [`registry`] and call it.

pub use densessm_session::{Choice, Registry, Runtime, RuntimeId, Unusable, UnusableReason, Version};

use densessm_proto::GraphKind;
use densessm_session::{Bundle, Device, Error, LoadOptions, Model, Probe, RuntimeInfo};

/// The runtimes that can be named, whether or not this build contains them, in order of preference.
pub const ALL: [Choice; 2] = [Choice::Ort, Choice::Tract];

/// Returns the runtimes of this build, in order of preference: ONNX Runtime, which is the faster one, then tract, which
/// needs nothing to be installed.
pub const fn registry() -> Registry {
    Registry::new(&[
        #[cfg(feature = "ort")]
        &densessm_ort::OrtRuntime,
        #[cfg(feature = "tract")]
        &densessm_tract::TractRuntime,
    ])
}

/// Returns which runtime a choice is on a device: its version and origin.
///
/// # Errors
/// When the runtime, or with [`Choice::Auto`] any of this build, cannot be used on the device; the error says why and
/// what to do.
pub fn availability(choice: Choice, device: Device) -> Result<RuntimeInfo, Error> {
    Ok(registry().choose(choice, device)?.availability(device)?)
}

/// Loads every graph of a bundle.
///
/// # Errors
/// When the runtime or the device cannot be used, or the runtime rejects the bundle.
///
/// # Examples
/// ```no_run
/// use densessm::{Bundle, Device, runtime};
///
/// let bundle = Bundle::open("bundle".as_ref())?;
/// let model = runtime::load(&bundle, runtime::Choice::Auto, Device::CPU)?;
/// println!("running on {}", model.info());
/// # Ok::<(), densessm::Error>(())
/// ```
pub fn load(bundle: &Bundle, choice: Choice, device: Device) -> Result<Box<dyn Model>, Error> {
    load_with(bundle, choice, &LoadOptions::for_bundle(bundle).with_device(device))
}

/// Loads graphs of a bundle with options.
///
/// # Errors
/// When the runtime or the device cannot be used, the options are invalid, or the runtime rejects the bundle.
///
/// # Examples
/// ```no_run
/// use densessm::{Bundle, Device, LoadOptions, proto::GraphKind, runtime};
///
/// let bundle = Bundle::open("bundle".as_ref())?;
/// let options = LoadOptions::for_bundle(&bundle).with_graphs([GraphKind::Recurrent]).with_device(Device::cuda(1));
/// let model = runtime::load_with(&bundle, runtime::Choice::Ort, &options)?;
/// # Ok::<(), densessm::Error>(())
/// ```
pub fn load_with(bundle: &Bundle, choice: Choice, options: &LoadOptions) -> Result<Box<dyn Model>, Error> {
    registry().choose(choice, options.device)?.load(bundle, options)
}

/// Loads one graph of a bundle so that values inside it are returned with its outputs; see [`Runtime::probe`].
///
/// # Errors
/// When the runtime or the device cannot be used, or the runtime rejects the graph.
pub fn probe(
    bundle: &Bundle,
    choice: Choice,
    device: Device,
    kind: GraphKind,
    names: &[String],
) -> Result<Box<dyn Probe>, Error> {
    registry().choose(choice, device)?.probe(bundle, kind, device, names)
}
