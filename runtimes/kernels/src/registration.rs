//! Kernels beside the schemas that they implement: what a runtime registers.

use crate::{AttributeValues, Attributes, BoundCall, Error, Kernel, Operand, Pool, ResultBuffer, Signature};
use densessm_proto::{
    DType,
    operators::{OperandType, Schema},
};
use std::fmt;

/// A kernel for an operator: `K` is the interface of the kernels of some device, `D` what they are made for.
///
/// The schema belongs to the operator, the kernel to the device: any number of sets of kernels register against the
/// same schemas, as [`cpu::KERNELS`](crate::cpu::KERNELS) does for host memory.
pub struct KernelRegistration<K: ?Sized, D> {
    schema: &'static Schema,
    activation: DType,
    make: fn(&AttributeValues, &D) -> Result<Box<K>, Error>,
}

impl<K: ?Sized, D> KernelRegistration<K, D> {
    /// A kernel for activations of one type, made by a function from a node's attributes.
    pub const fn new(
        schema: &'static Schema,
        activation: DType,
        make: fn(&AttributeValues, &D) -> Result<Box<K>, Error>,
    ) -> Self {
        Self { schema, activation, make }
    }

    /// The operator's schema.
    pub const fn schema(&self) -> &'static Schema {
        self.schema
    }

    /// The element type that an operand or a result has with this kernel.
    pub const fn dtype(&self, dtype: OperandType) -> DType {
        dtype.with(self.activation)
    }

    /// Makes the kernel for a node.
    ///
    /// # Errors
    /// When an attribute is missing or out of range, or the device cannot make the kernel.
    pub fn prepare(&self, attributes: &dyn Attributes, device: &D) -> Result<PreparedKernel<K>, Error> {
        let attributes = AttributeValues::read(self.schema, attributes)?;
        let signature = Signature::new(&attributes, self.activation)?;
        let kernel = (self.make)(&attributes, device)?;
        Ok(PreparedKernel { signature, attributes, kernel })
    }
}

impl<K: ?Sized, D> Clone for KernelRegistration<K, D> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<K: ?Sized, D> Copy for KernelRegistration<K, D> {}

impl<K: ?Sized, D> fmt::Debug for KernelRegistration<K, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.schema.name, self.activation)
    }
}

/// A kernel made for one node, with the signature that its calls are checked against.
pub struct PreparedKernel<K: ?Sized> {
    signature: Signature,
    attributes: AttributeValues,
    kernel: Box<K>,
}

impl<K: ?Sized> PreparedKernel<K> {
    /// What calls are checked against.
    pub fn signature(&self) -> &Signature {
        &self.signature
    }

    /// The node's attributes.
    pub fn attributes(&self) -> &AttributeValues {
        &self.attributes
    }

    /// The kernel.
    pub fn kernel(&self) -> &K {
        &self.kernel
    }
}

impl<K: ?Sized> fmt::Debug for PreparedKernel<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct(self.signature.schema().name).field("attributes", &self.attributes).finish_non_exhaustive()
    }
}

impl PreparedKernel<dyn Kernel> {
    /// Computes a call's results into buffers of the shapes that [`BoundCall::result_shape`] says.
    ///
    /// # Errors
    /// When a buffer has another type or size, a value is out of range, or the pool cannot run.
    pub fn compute(
        &self,
        call: &BoundCall<'_, Operand<'_>>,
        results: &mut [ResultBuffer<'_>],
        pool: &dyn Pool,
    ) -> Result<(), Error> {
        let schema = self.signature.schema();
        if results.len() != call.results() {
            return Err(Error::new("results", format!("expected {} buffers, got {}", call.results(), results.len())));
        }
        for (position, buffer) in results.iter().enumerate() {
            let dtype = call.result_dtype(position).unwrap_or(self.signature.activation);
            let elements = call.result_shape(position).map_or(0, |shape| shape.elements());
            if (buffer.dtype(), buffer.elements()) != (dtype, elements) {
                let got = format!("{} of {}", buffer.elements(), buffer.dtype());
                let problem = format!("expected {elements} elements of {dtype}, got {got}");
                return Err(Error::new(schema.result_name(position), problem));
            }
        }
        self.kernel.compute(call, results, pool)
    }

    /// Checks a call's operands and computes its results.
    ///
    /// # Errors
    /// Those of [`Signature::bind`] and [`PreparedKernel::compute`].
    pub fn run(
        &self,
        operands: &[Operand<'_>],
        results: &mut [ResultBuffer<'_>],
        pool: &dyn Pool,
    ) -> Result<(), Error> {
        self.compute(&self.signature.bind(operands)?, results, pool)
    }
}
