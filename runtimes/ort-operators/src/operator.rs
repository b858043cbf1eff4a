//! One operator, as `ort` registers it.

use crate::context::Context;
use densessm_kernels::{Arity, Attributes, Definition, Element, Kernel, Level, Operand};
use ort::{
    AsPointer, Error, Result,
    operator::{
        ComputeContext, Kernel as OrtKernel, KernelContext, Operator, OperatorInput, OperatorOutput,
        ShapeInferenceContext,
    },
    value::TensorElementType,
};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    ptr,
};

/// Operands of a call that are held without allocating.
const FEW: usize = 48;

/// An operator of the list.
pub(crate) struct KernelOperator {
    pub(crate) definition: Definition,
}

/// A kernel made for a node.
pub(crate) struct Node {
    definition: Definition,
    kernel: Box<dyn Kernel>,
}

impl Operator for KernelOperator {
    type Kernel<'attr> = Node;

    fn name(&self) -> &str {
        self.definition.name
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        self.definition.operands.iter().map(|slot| {
            let element = match slot.element {
                Element::Float32 => TensorElementType::Float32,
                Element::Int32 => TensorElementType::Int32,
            };
            match slot.arity {
                Arity::Required => OperatorInput::required(element),
                Arity::Optional => OperatorInput::optional(element),
                Arity::Repeated => OperatorInput::variadic(0).homogenous(element),
            }
        })
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        self.definition.results.iter().map(|_| OperatorOutput::required(TensorElementType::Float32))
    }

    fn create_kernel<'attr>(&self, node: &KernelContext<'attr>) -> Result<Node> {
        let kernel = self.definition.kernel(&NodeAttributes(node), Level::best());
        let kernel = kernel.map_err(|error| failed(&self.definition, &error.to_string()))?;
        Ok(Node { definition: self.definition, kernel })
    }

    fn infer_shape(&self, context: &mut ShapeInferenceContext) -> Result<()> {
        for (result, like) in self.definition.results.iter().enumerate() {
            let mut shape = ptr::null_mut();
            // SAFETY: ONNX Runtime's own context, alive for this call; what it hands out is only handed back to it.
            unsafe {
                let api = ort::api();
                let context = context.ptr().cast_mut();
                Error::result_from_status((api.ShapeInferContext_GetInputTypeShape)(context, *like, &mut shape))?;
                Error::result_from_status((api.ShapeInferContext_SetOutputTypeShape)(context, result, shape))?;
            }
        }
        Ok(())
    }
}

struct NodeAttributes<'a, 'attr>(&'a KernelContext<'attr>);

impl Attributes for NodeAttributes<'_, '_> {
    fn integer(&self, name: &str) -> Option<i64> {
        self.0.get(name)
    }

    fn float(&self, name: &str) -> Option<f32> {
        self.0.get(name)
    }
}

fn failed(definition: &Definition, problem: &str) -> Error {
    Error::new(format!("{}: {problem}", definition.name))
}

impl OrtKernel for Node {
    fn compute(&mut self, context: &ComputeContext) -> Result<()> {
        // A panic must not reach ONNX Runtime, whose frames cannot be unwound.
        catch_unwind(AssertUnwindSafe(|| self.run(&Context::new(context))))
            .unwrap_or_else(|_| Err(failed(&self.definition, "the kernel panicked; please report this")))
    }
}

impl Node {
    fn run(&self, context: &Context<'_>) -> Result<()> {
        let count = context.inputs()?;
        let mut few = [Operand::Absent; FEW];
        let mut many = Vec::new();
        let operands = match few.get_mut(..count) {
            Some(few) => few,
            None => {
                many.resize(count, Operand::Absent);
                &mut many[..]
            }
        };
        for (index, operand) in operands.iter_mut().enumerate() {
            *operand = context.input(index).map_err(|error| failed(&self.definition, &error.to_string()))?;
        }
        let problem = |problem: String| failed(&self.definition, &problem);
        let like = |result: usize| {
            let index = self.definition.results[result];
            let slot = self.definition.operands[index].name;
            operands.get(index).and_then(Operand::shape).ok_or_else(|| problem(format!("{slot}: expected, got none")))
        };
        let first = context.output(0, like(0)?, operands)?;
        let run = match self.definition.results.len() {
            1 => self.kernel.run(operands, &mut [first], context),
            _ => self.kernel.run(operands, &mut [first, context.output(1, like(1)?, operands)?], context),
        };
        run.map_err(|error| problem(error.to_string()))
    }
}
