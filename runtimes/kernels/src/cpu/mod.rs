//! The kernels for the CPU: SIMD on slices of fp32.
//!
//! Each kernel is written once over vectors of any length and compiled for every [`Level`] of instructions, which is
//! chosen when the kernel is made.

mod causal_conv;
mod dense_norm;
mod head;
mod lanes;
mod parts;
mod product;
mod readout;
mod retention;
mod retention_step;
mod selective_scan;
mod selective_step;
mod simd;

pub use lanes::Function;
pub use simd::Level;

use crate::{Kernel, KernelRegistration};

/// A kernel for the CPU.
pub type CpuKernel = KernelRegistration<dyn Kernel, Level>;

/// The kernels of all operators.
pub const KERNELS: [CpuKernel; 6] = [
    causal_conv::KERNEL,
    selective_scan::KERNEL,
    selective_step::KERNEL,
    retention::KERNEL,
    retention_step::KERNEL,
    dense_norm::KERNEL,
];

/// The kernel of an operator, by the operator's name.
pub fn kernel(name: &str) -> Option<CpuKernel> {
    KERNELS.into_iter().find(|kernel| kernel.schema().name == name)
}
