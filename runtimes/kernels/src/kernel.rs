//! What a CPU kernel does with a call.

use crate::{BoundCall, Error, Operand, Pool, ResultBuffer};

/// A kernel on host memory, made for one node of a graph.
pub trait Kernel: Send + Sync {
    /// Computes the results of a call whose operands fit the schema, into buffers of the types and sizes that it says,
    /// whatever they held before.
    ///
    /// # Errors
    /// When a value is out of range, or the pool cannot run.
    fn compute(
        &self,
        call: &BoundCall<'_, Operand<'_>>,
        results: &mut [ResultBuffer<'_>],
        pool: &dyn Pool,
    ) -> Result<(), Error>;
}
