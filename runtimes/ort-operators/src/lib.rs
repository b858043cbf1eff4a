//! densessm's kernels as custom operators of ONNX Runtime, for a session of this process or for a shared library.
//!
//! `ort`'s operator trait registers the operators, as their schemas describe them. A call reads its operands through
//! ONNX Runtime's own interface and not through `ort`'s values, which allocate memory for every operand of every call:
//! a step of fifty layers has two thousand of them.

mod context;
mod operator;

use densessm_kernels::cpu;
use densessm_proto::operators::DOMAIN;
use operator::KernelOperator;
use ort::operator::OperatorDomain;

/// Makes the domain `ai.densessm` with all operators, for `SessionBuilder::with_operators`.
///
/// # Errors
/// When ONNX Runtime rejects an operator.
pub fn domain() -> ort::Result<OperatorDomain> {
    cpu::KERNELS
        .into_iter()
        .try_fold(OperatorDomain::new(DOMAIN)?, |domain, kernel| domain.add(KernelOperator::new(kernel)?))
}
