//! One operator, as `ort` registers it: what it takes and gives is its schema.

use crate::context::Context;
use densessm_kernels::{Attributes, Kernel, Level, Operand, PreparedKernel, ResultBuffer, cpu::CpuKernel};
use densessm_proto::{
    DType,
    operators::{Arity, GroupSchema, Repeat, Schema},
};
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

/// Operands of a call that fit the buffer on the stack.
const STACK_OPERANDS: usize = 48;

/// An operator to register.
pub(crate) struct KernelOperator {
    registration: CpuKernel,
    inputs: Vec<Input>,
    outputs: Vec<TensorElementType>,
}

/// An input in ONNX Runtime's terms; `ort`'s own descriptions cannot be kept, for they are no `Clone`.
#[derive(Clone, Copy)]
enum Input {
    Required(TensorElementType),
    Optional(TensorElementType),
    /// At least so many operands; of one type, or of any.
    Variadic(usize, Option<TensorElementType>),
}

/// A kernel made for a node.
pub(crate) struct Node {
    kernel: PreparedKernel<dyn Kernel>,
}

impl KernelOperator {
    /// Translates the schema of a kernel.
    ///
    /// # Errors
    /// When ONNX Runtime has no such element types.
    pub(crate) fn new(registration: CpuKernel) -> Result<Self> {
        let schema = registration.schema();
        let mut inputs = Vec::new();
        for operand in schema.operands {
            let dtype = element_type(schema, registration.dtype(operand.dtype))?;
            inputs.push(match operand.arity {
                Arity::Required => Input::Required(dtype),
                Arity::Optional => Input::Optional(dtype),
            });
        }
        // ONNX Runtime has one variadic input, which is all groups together.
        if !schema.groups.is_empty() {
            let dtypes = schema.groups.iter().flat_map(|group| group.operands);
            let mut dtypes = dtypes.map(|operand| registration.dtype(operand.dtype));
            let one = dtypes.next().filter(|first| dtypes.all(|dtype| dtype == *first));
            let one = one.map(|dtype| element_type(schema, dtype)).transpose()?;
            inputs.push(Input::Variadic(schema.groups.iter().map(least_operands).sum(), one));
        }
        let outputs = schema.results.iter().map(|result| element_type(schema, registration.dtype(result.dtype)));
        let outputs = outputs.collect::<Result<_>>()?;
        Ok(Self { registration, inputs, outputs })
    }
}

/// The smallest number of operands of a group, whatever the attributes are.
fn least_operands(group: &GroupSchema) -> usize {
    match group.repeat {
        Repeat::Rest { minimum } if group.arity == Arity::Required => minimum * group.operands.len(),
        Repeat::Rest { .. } | Repeat::Attribute(_) => 0,
    }
}

fn element_type(schema: &Schema, dtype: DType) -> Result<TensorElementType> {
    Ok(match dtype {
        DType::F64 => TensorElementType::Float64,
        DType::F32 => TensorElementType::Float32,
        DType::F16 => TensorElementType::Float16,
        DType::BF16 => TensorElementType::Bfloat16,
        DType::I64 => TensorElementType::Int64,
        DType::I32 => TensorElementType::Int32,
        DType::I8 => TensorElementType::Int8,
        DType::U8 => TensorElementType::Uint8,
        DType::Bool => TensorElementType::Bool,
        other => return Err(failed(schema, &format!("expected an element type of ONNX Runtime, got {other}"))),
    })
}

impl Operator for KernelOperator {
    type Kernel<'attr> = Node;

    fn name(&self) -> &str {
        self.registration.schema().name
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        self.inputs.iter().map(|input| match *input {
            Input::Required(dtype) => OperatorInput::required(dtype),
            Input::Optional(dtype) => OperatorInput::optional(dtype),
            Input::Variadic(minimum, Some(dtype)) => OperatorInput::variadic(minimum).homogenous(dtype),
            Input::Variadic(minimum, None) => OperatorInput::variadic(minimum),
        })
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        self.outputs.iter().map(|dtype| OperatorOutput::required(*dtype))
    }

    fn create_kernel<'attr>(&self, node: &KernelContext<'attr>) -> Result<Node> {
        let kernel = self.registration.prepare(&NodeAttributes(node), &Level::best());
        let kernel = kernel.map_err(|error| failed(self.registration.schema(), &error.to_string()))?;
        Ok(Node { kernel })
    }

    fn infer_shape(&self, context: &mut ShapeInferenceContext) -> Result<()> {
        let schema = self.registration.schema();
        for (result, declared) in schema.results.iter().enumerate() {
            let like = schema.operand(declared.like);
            let like = like.ok_or_else(|| failed(schema, &format!("no operand `{}`", declared.like)))?;
            let mut shape = ptr::null_mut();
            // SAFETY: ONNX Runtime's own context, alive for this call; the shape that it returns is only passed back.
            unsafe {
                let api = ort::api();
                let context = context.ptr().cast_mut();
                Error::result_from_status((api.ShapeInferContext_GetInputTypeShape)(context, like, &mut shape))?;
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

fn failed(schema: &Schema, problem: &str) -> Error {
    Error::new(format!("{}: {problem}", schema.name))
}

impl OrtKernel for Node {
    fn compute(&mut self, context: &ComputeContext) -> Result<()> {
        // A panic must not reach ONNX Runtime, whose frames cannot be unwound.
        catch_unwind(AssertUnwindSafe(|| self.run(&Context::new(context)))).unwrap_or_else(|_| {
            Err(failed(self.kernel.signature().schema(), "the kernel panicked; please report this"))
        })
    }
}

impl Node {
    fn run(&self, context: &Context<'_>) -> Result<()> {
        let schema = self.kernel.signature().schema();
        let problem = |error: &dyn std::fmt::Display| failed(schema, &error.to_string());
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
        let computed = match schema.results.len() {
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
