//! densessm's kernels as custom operators of ONNX Runtime, for a session of this process or for a shared library.
//!
//! The one design decision: `ort`'s operator trait registers them, but a call reads its operands through ONNX
//! Runtime's own interface, without `ort`'s values: those take memory for every operand of every call, and a step of
//! fifty layers has two thousand of them.

mod context;
mod operator;

use densessm_kernels::OPERATORS;
use densessm_proto::operators::DOMAIN;
use operator::KernelOperator;
use ort::operator::OperatorDomain;

/// The domain `ai.densessm` with all its operators, for `SessionBuilder::with_operators`.
///
/// # Errors
/// When ONNX Runtime does not take an operator.
pub fn domain() -> ort::Result<OperatorDomain> {
    OPERATORS
        .into_iter()
        .try_fold(OperatorDomain::new(DOMAIN)?, |domain, definition| domain.add(KernelOperator { definition }))
}
