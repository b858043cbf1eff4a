//! One operator for one device and element type, as `ort` registers it: what it takes and gives is its schema.

use crate::Placement;
use densessm_kernels::Attributes;
use densessm_proto::{
    DType,
    operators::{Arity, GroupSchema, OperandType, Repeat, ResultShape, Schema},
};
use ort::{
    AsPointer, Error, Result,
    operator::{Kernel as OrtKernel, KernelContext, Operator, OperatorInput, OperatorOutput, ShapeInferenceContext},
    value::TensorElementType,
};
use std::{ptr, sync::Arc};

/// A registration of the kernels of a device.
pub(crate) trait Backend: Send + Sync + 'static {
    /// A kernel made for a node.
    type Node: OrtKernel + 'static;

    /// ONNX Runtime's provider of the device; none for the CPU's.
    const PROVIDER: Option<&'static str>;

    /// The operator's schema.
    fn schema(&self) -> &'static Schema;

    /// The element type that an operand or a result has with this kernel.
    fn dtype(&self, dtype: OperandType) -> DType;

    /// Makes the kernel for a node.
    fn create(&self, node: &KernelContext<'_>) -> Result<Self::Node>;
}

/// An operator to register.
pub(crate) struct KernelOperator<B> {
    backend: B,
    inputs: Vec<Input>,
    outputs: Vec<TensorElementType>,
    /// The element type of the variadic tail of the results.
    repeated: Option<TensorElementType>,
    placement: Option<Arc<Placement>>,
}

/// An input in ONNX Runtime's terms; `ort`'s own descriptions cannot be kept, for they are no `Clone`.
#[derive(Clone, Copy)]
enum Input {
    Required(TensorElementType),
    Optional(TensorElementType),
    /// At least so many operands; of one type, or of any.
    Variadic(usize, Option<TensorElementType>),
}

impl<B: Backend> KernelOperator<B> {
    /// Translates the schema of a kernel.
    ///
    /// # Errors
    /// When ONNX Runtime has no such element types.
    pub(crate) fn new(backend: B, placement: Option<Arc<Placement>>) -> Result<Self> {
        let schema = backend.schema();
        let mut inputs = Vec::new();
        for operand in schema.operands {
            let dtype = element_type(schema, backend.dtype(operand.dtype))?;
            inputs.push(match operand.arity {
                Arity::Required => Input::Required(dtype),
                Arity::Optional => Input::Optional(dtype),
            });
        }
        // ONNX Runtime has one variadic input, which is all groups together. Whether its operands have one type must not
        // depend on the activations: registrations of one name are merged only if they agree in that.
        if !schema.groups.is_empty() {
            let mut dtypes = schema.groups.iter().flat_map(|group| group.operands).map(|operand| operand.dtype);
            let one = dtypes.next().filter(|first| dtypes.all(|dtype| dtype == *first));
            let one = one.map(|dtype| element_type(schema, backend.dtype(dtype))).transpose()?;
            inputs.push(Input::Variadic(schema.groups.iter().map(least_operands).sum(), one));
        }
        let outputs = schema.results.iter().map(|result| element_type(schema, backend.dtype(result.dtype)));
        let outputs = outputs.collect::<Result<_>>()?;
        let repeated = schema.result_group.iter().flat_map(|group| group.results).map(|result| result.dtype);
        let repeated =
            one_type(schema, repeated)?.map(|dtype| element_type(schema, backend.dtype(dtype))).transpose()?;
        Ok(Self { backend, inputs, outputs, repeated, placement })
    }
}

/// The one type of results that are repeated, if there are any.
fn one_type(schema: &Schema, mut dtypes: impl Iterator<Item = OperandType>) -> Result<Option<OperandType>> {
    let Some(first) = dtypes.next() else { return Ok(None) };
    match dtypes.find(|dtype| *dtype != first) {
        None => Ok(Some(first)),
        Some(other) => Err(failed(schema, &format!("expected repeated results of one type, got {first} and {other}"))),
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

impl<B: Backend> Operator for KernelOperator<B> {
    type Kernel<'attr> = B::Node;

    fn name(&self) -> &str {
        self.backend.schema().name
    }

    fn execution_provider_type(&self) -> Option<&str> {
        B::PROVIDER
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
        let repeated = self.repeated.map(|dtype| OperatorOutput::variadic(0).homogenous(dtype));
        self.outputs.iter().map(|dtype| OperatorOutput::required(*dtype)).chain(repeated)
    }

    fn create_kernel<'attr>(&self, node: &KernelContext<'attr>) -> Result<B::Node> {
        let kernel = self.backend.create(node)?;
        if let Some(placement) = &self.placement {
            placement.add(B::PROVIDER, node.node_name()?);
        }
        Ok(kernel)
    }

    fn infer_shape(&self, context: &mut ShapeInferenceContext) -> Result<()> {
        let schema = self.backend.schema();
        // The shapes of all other results are those of the graph's outputs, which the graph states.
        for (result, declared) in schema.results.iter().enumerate() {
            let ResultShape::Like(like) = declared.shape else { continue };
            let like = schema.operand(like).ok_or_else(|| failed(schema, &format!("no operand `{like}`")))?;
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

/// The attributes of a node.
pub(crate) struct NodeAttributes<'a, 'attr>(pub(crate) &'a KernelContext<'attr>);

impl Attributes for NodeAttributes<'_, '_> {
    fn integer(&self, name: &str) -> Option<i64> {
        self.0.get(name)
    }

    fn float(&self, name: &str) -> Option<f32> {
        self.0.get(name)
    }
}

/// An error of a node of an operator.
pub(crate) fn failed(schema: &Schema, problem: &dyn std::fmt::Display) -> Error {
    Error::new(format!("{}: {problem}", schema.name))
}
