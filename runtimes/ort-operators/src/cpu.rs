//! The kernels for the CPU as operators.

use crate::{
    context::Context,
    operator::{Backend, NodeAttributes, failed},
};
use densessm_kernels::{Kernel, Level, Operand, PreparedKernel, ResultBuffer, cpu::CpuKernel};
use densessm_proto::{
    DType,
    operators::{OperandType, Schema},
};
use ort::{
    Error, Result,
    operator::{ComputeContext, Kernel as OrtKernel, KernelContext},
};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Operands of a call that fit the buffer on the stack.
const STACK_OPERANDS: usize = 48;

/// A kernel made for a node.
pub(crate) struct Node {
    kernel: PreparedKernel<dyn Kernel>,
}

impl Backend for CpuKernel {
    type Node = Node;

    const PROVIDER: Option<&'static str> = None;

    fn schema(&self) -> &'static Schema {
        self.schema()
    }

    fn dtype(&self, dtype: OperandType) -> DType {
        self.dtype(dtype)
    }

    fn create(&self, node: &KernelContext<'_>) -> Result<Node> {
        let kernel = self.prepare(&NodeAttributes(node), &Level::best());
        Ok(Node { kernel: kernel.map_err(|error| failed(self.schema(), &error))? })
    }
}

impl OrtKernel for Node {
    fn compute(&mut self, context: &ComputeContext) -> Result<()> {
        // A panic must not reach ONNX Runtime, whose frames cannot be unwound.
        catch_unwind(AssertUnwindSafe(|| self.run(&Context::new(context)))).unwrap_or_else(|_| {
            Err(failed(self.kernel.signature().schema(), &"the kernel panicked; please report this"))
        })
    }
}

impl Node {
    fn run(&self, context: &Context<'_>) -> Result<()> {
        let schema = self.kernel.signature().schema();
        let problem = |error: &dyn std::fmt::Display| failed(schema, error);
        let count = context.inputs()?;
        let mut on_stack = [Operand::Absent; STACK_OPERANDS];
        let mut on_heap = Vec::new();
        let operands = match on_stack.get_mut(..count) {
            Some(operands) => operands,
            None => {
                on_heap.resize(count, Operand::Absent);
                &mut on_heap[..]
            }
        };
        for (index, operand) in operands.iter_mut().enumerate() {
            *operand = context.input(index).map_err(|error| problem(&error))?;
        }
        let call = self.kernel.signature().bind(operands).map_err(|error| problem(&error))?;
        let result = |index: usize| {
            let shape = call.result_shape(index).ok_or_else(|| problem(&format!("result {index} has no shape")))?;
            Ok::<_, Error>(ResultBuffer::F32(context.output(index, shape, operands).map_err(|error| problem(&error))?))
        };
        let computed = match call.results() {
            1 => self.kernel.compute(&call, &mut [result(0)?], context),
            2 => self.kernel.compute(&call, &mut [result(0)?, result(1)?], context),
            count => {
                let mut results = (0..count).map(result).collect::<Result<Vec<_>>>()?;
                self.kernel.compute(&call, &mut results, context)
            }
        };
        computed.map_err(|error| problem(&error))
    }
}
