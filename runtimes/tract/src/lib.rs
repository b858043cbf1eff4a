//! Bundles on tract: pure Rust, nothing to install.
//!
//! The one design decision: a graph becomes one optimised plan in which `batch` and `sequence` stay symbols, so that
//! weights are packed once and any size runs; states are tract's own tensors, handed from call to call.
//!
//! What tract lacks is made up for before it sees a graph: local functions are replaced by their bodies
//! (`inline`) or, where there is one, by a kernel (`kernels`); casts keep their 64 bits (`cast`), and weights may only lie beside the graph (`external`).

#![forbid(unsafe_code)]

mod cast;
mod external;
mod graph;
mod inline;
mod kernels;
mod model;
mod probe;
mod products;
mod roofline;
mod states;
mod tensor;

pub use roofline::time_product;

use densessm_session::{Availability, Bundle, Device, Error, LoadOptions, Model};
pub use probe::probe;

/// The version of tract this is built on.
pub const VERSION: &str = "0.23.9";

/// Loads a bundle's graphs.
///
/// Without a number of threads, operators run on tract's default executor: the calling thread.
///
/// # Errors
/// When the device is not the CPU, the bundle lacks a graph asked for, or tract cannot read or optimise it.
pub fn load(bundle: &Bundle, options: &LoadOptions) -> Result<Box<dyn Model>, Error> {
    if let Availability::Unusable(problem) = availability(options.device) {
        return Err(Error::Unusable { what: options.device.to_string(), problem });
    }
    Ok(Box::new(model::TractModel::load(bundle, options)?))
}

/// Whether tract can be used on a device: it is built in, and knows the CPU only.
pub fn availability(device: Device) -> Availability {
    match device {
        Device::Cpu => Availability::Usable(format!("tract {VERSION}, built in")),
        Device::Cuda | Device::TensorRt => {
            Availability::Unusable("tract runs on the CPU; use --runtime ort for a card".to_owned())
        }
    }
}

#[cfg(test)]
mod tests;
