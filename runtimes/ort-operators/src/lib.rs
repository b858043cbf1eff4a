//! densessm's kernels as custom operators of ONNX Runtime, for a session of this process or for a shared library.
//!
//! `ort`'s operator trait registers the operators, as their schemas describe them, once for each device and element
//! type: ONNX Runtime merges registrations of one name and takes the kernel of the provider that a node is assigned to. A
//! call reads its operands through ONNX Runtime's own interface and not through `ort`'s values, which allocate memory
//! for every operand of every call: a step of fifty layers has two thousand of them.

mod context;
mod cpu;
mod cuda;
mod operator;
mod placement;
mod tensor;

pub use placement::Placement;

use densessm_kernels::{cpu as cpu_kernels, cuda as cuda_kernels};
use densessm_proto::operators::DOMAIN;
use operator::KernelOperator;
use ort::operator::OperatorDomain;
use std::sync::Arc;

/// Makes the domain `ai.densessm` with the operators for the CPU and for NVIDIA GPUs, for
/// `SessionBuilder::with_operators`.
///
/// Nothing of CUDA is loaded before a session with ONNX Runtime's CUDA provider makes the first node's kernel. If the
/// driver or NVRTC is missing then, loading the session fails with an error that names the package. A session on the CPU
/// can load graphs with half-precision activations, too: ONNX Runtime converts the operands for the kernels in fp32.
///
/// # Errors
/// When ONNX Runtime rejects an operator.
pub fn domain() -> ort::Result<OperatorDomain> {
    make(None)
}

/// As [`domain`]; `placement` records where the sessions that are loaded with it place their nodes.
///
/// # Errors
/// When ONNX Runtime rejects an operator.
pub fn domain_with_placement(placement: Arc<Placement>) -> ort::Result<OperatorDomain> {
    make(Some(placement))
}

fn make(placement: Option<Arc<Placement>>) -> ort::Result<OperatorDomain> {
    let domain = OperatorDomain::new(DOMAIN)?;
    let domain = cpu_kernels::KERNELS
        .into_iter()
        .try_fold(domain, |domain, kernel| domain.add(KernelOperator::new(kernel, placement.clone())?))?;
    cuda_kernels::KERNELS
        .into_iter()
        .try_fold(domain, |domain, kernel| domain.add(KernelOperator::new(kernel, placement.clone())?))
}
