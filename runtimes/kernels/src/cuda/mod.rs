//! The kernels for NVIDIA GPUs: sources in CUDA C++, compiled for the GPU at hand, and how they are launched.
//!
//! A kernel is made for one node, and compiles its source with the sizes of the node's operands as constants. These are
//! known when the node is made if the graph says so ([`PreparedKernel::units`]), and at its first call at the latest:
//! nothing is compiled, loaded or allocated in a later call of the same sizes, so that such calls can be captured into a
//! CUDA graph.
//!
//! Neither a CUDA toolkit nor a GPU is needed to build this. A missing driver or compiler is an error of
//! [`Device::open`].
//!
//! [`PreparedKernel::units`]: crate::PreparedKernel::units

mod causal_conv;
mod dense_norm;
mod device;
mod kernel;
mod mamba_step;
mod retention;
mod retention_step;
mod scratch;
mod selective_scan;
mod selective_step;
mod sources;
pub mod units;

pub use device::{Device, on_compilation};
pub use kernel::{Call, DeviceOperand, Kernel};
pub use mamba_step::runs_mamba_step;
pub use units::Activation;

use crate::KernelRegistration;
use std::sync::Arc;

/// A kernel for NVIDIA GPUs.
pub type CudaKernel = KernelRegistration<dyn Kernel, Arc<Device>>;

/// The kernels of all operators, each for activations in fp32, fp16 and bf16, and those of whole models.
pub const KERNELS: [CudaKernel; 20] = {
    let of = [
        causal_conv::KERNELS,
        selective_scan::KERNELS,
        selective_step::KERNELS,
        retention::KERNELS,
        retention_step::KERNELS,
        dense_norm::KERNELS,
    ];
    let mut all = [of[0][0]; 20];
    let mut i = 0;
    while i < 3 * of.len() {
        all[i] = of[i / 3][i % 3];
        i += 1;
    }
    all[i] = mamba_step::KERNELS[0];
    all[i + 1] = mamba_step::KERNELS[1];
    all
};

/// The registrations of a kernel for each type of activations: `kernels!(SCHEMA, make)`.
macro_rules! kernels {
    ($schema:expr, $make:expr) => {{
        use densessm_proto::DType;
        use $crate::KernelRegistration;
        [
            KernelRegistration::new($schema, DType::F32, |attributes, device| $make(attributes, device)),
            KernelRegistration::new($schema, DType::F16, |attributes, device| $make(attributes, device)),
            KernelRegistration::new($schema, DType::BF16, |attributes, device| $make(attributes, device)),
        ]
    }};
}
pub(crate) use kernels;

#[cfg(test)]
mod tests {
    use super::{Activation, KERNELS};
    use densessm_proto::operators::{FUSED_SCHEMAS, OperandType, SCHEMAS};

    #[test]
    fn every_operator_has_a_kernel_for_each_type_of_activations_once() {
        let schemas = || SCHEMAS.into_iter().chain(FUSED_SCHEMAS);
        for schema in schemas() {
            for &dtype in schema.activations {
                let is = |kernel: &&super::CudaKernel| {
                    kernel.schema().name == schema.name && kernel.dtype(OperandType::Activation) == dtype
                };
                assert_eq!(KERNELS.iter().filter(is).count(), 1, "{} in {dtype}", schema.name);
                assert!(Activation::of(dtype).is_some());
            }
        }
        assert_eq!(KERNELS.len(), schemas().map(|schema| schema.activations.len()).sum::<usize>());
    }
}
