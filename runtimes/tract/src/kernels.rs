//! The `ai.densessm` operators in tract: the kernels that ONNX Runtime uses too, on tract's tensors and threads.
//!
//! Operands, attributes and results of an operator are those of its schema.

use densessm_kernels::{
    Attributes, Error, Kernel, Level, Operand, Pool, PreparedKernel, ResultBuffer, Shape,
    cpu::{self, CpuKernel},
};
use densessm_proto::{
    DType,
    operators::{AttributeKind, DOMAIN, ResultSchema, Schema},
};
use std::{
    collections::HashMap,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::{AtomicUsize, Ordering},
};
use tract_linalg::multithread::{Executor, current_tract_executor};
use tract_onnx::{model::ParsingContext, pb::NodeProto, prelude::*, tract_hir::internal::*};

/// Whether there is a kernel for an operator.
pub(crate) fn known(domain: &str, name: &str) -> bool {
    domain == DOMAIN && cpu::kernel(name).is_some()
}

/// Adds all operators to tract's registry.
pub(crate) fn register(onnx: &mut tract_onnx::Onnx) {
    for kernel in cpu::KERNELS {
        onnx.op_register.insert(kernel.schema().name, parse);
    }
}

fn parse(_: &ParsingContext<'_>, node: &NodeProto) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    let registration = cpu::kernel(&node.op_type).ok_or_else(|| format_err!("no operator {}", node.op_type))?;
    let schema = registration.schema();
    let attributes = NodeAttributes::read(schema, node)?;
    let kernel = registration.prepare(&attributes, &Level::best()).map_err(|error| failed(schema, &error))?;
    let present: Vec<bool> = node.input.iter().map(|name| !name.is_empty()).collect();
    let results = schema.results.iter().zip(kernel.signature().results_like());
    let results = results.map(|(result, like)| ResultType::new(registration, schema, result, like, &present));
    let results = results.collect::<TractResult<_>>()?;
    Ok((expand(KernelOp { present, results, kernel: kernel.into() }), Vec::new()))
}

/// The attributes of a node that its schema has.
#[derive(Default)]
struct NodeAttributes {
    integers: HashMap<&'static str, i64>,
    floats: HashMap<&'static str, f32>,
}

impl NodeAttributes {
    fn read(schema: &Schema, node: &NodeProto) -> TractResult<Self> {
        let mut attributes = Self::default();
        for attribute in schema.attributes {
            let name = attribute.name;
            match attribute.kind {
                AttributeKind::Int { .. } => {
                    attributes.integers.extend(node.get_attr_opt(name)?.map(|value: i64| (name, value)));
                }
                AttributeKind::Float { .. } => {
                    attributes.floats.extend(node.get_attr_opt(name)?.map(|value: f32| (name, value)));
                }
            }
        }
        Ok(attributes)
    }
}

impl Attributes for NodeAttributes {
    fn integer(&self, name: &str) -> Option<i64> {
        self.integers.get(name).copied()
    }

    fn float(&self, name: &str) -> Option<f32> {
        self.floats.get(name).copied()
    }
}

/// A kernel as a node.
#[derive(Clone)]
struct KernelOp {
    /// Which of the operands are present; tract passes on only those.
    present: Vec<bool>,
    results: Vec<ResultType>,
    kernel: Arc<PreparedKernel<dyn Kernel>>,
}

/// Element type of a result, and which of tract's inputs has its shape.
#[derive(Clone, Copy)]
struct ResultType {
    dtype: DatumType,
    like: usize,
}

impl ResultType {
    fn new(
        registration: CpuKernel,
        schema: &Schema,
        result: &ResultSchema,
        like: Option<usize>,
        present: &[bool],
    ) -> TractResult<Self> {
        let dtype = match registration.dtype(result.dtype) {
            DType::F32 => DatumType::F32,
            other => bail!("{}: {}: expected fp32, got {other}", schema.name, result.name),
        };
        let like = like.filter(|&like| present.get(like) == Some(&true));
        let like =
            like.ok_or_else(|| format_err!("{}: {}: expected an operand of its shape", schema.name, result.name))?;
        Ok(Self { dtype, like: present[..like].iter().filter(|present| **present).count() })
    }
}

impl KernelOp {
    fn schema(&self) -> &'static Schema {
        self.kernel.signature().schema()
    }
}

impl PartialEq for KernelOp {
    fn eq(&self, other: &Self) -> bool {
        let same_kernel = self.kernel.attributes() == other.kernel.attributes();
        same_kernel && self.present == other.present
    }
}

impl Eq for KernelOp {}

impl fmt::Debug for KernelOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.kernel.fmt(f)
    }
}

fn failed(schema: &Schema, error: &Error) -> TractError {
    format_err!("{}: {error}", schema.name)
}

impl Expansion for KernelOp {
    fn name(&self) -> StaticName {
        self.schema().name.into()
    }

    fn nboutputs(&self) -> TractResult<usize> {
        Ok(self.results.len())
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        s: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        check_output_arity(outputs, self.results.len())?;
        for (result, output) in self.results.iter().zip(outputs) {
            s.equals(&output.datum_type, result.dtype)?;
            s.equals(&output.shape, &inputs[result.like].shape)?;
        }
        Ok(())
    }

    fn wire(&self, prefix: &str, model: &mut TypedModel, inputs: &[OutletId]) -> TractResult<TVec<OutletId>> {
        model.wire_node(prefix, self.clone(), inputs)
    }
}

impl Op for KernelOp {
    fn name(&self) -> StaticName {
        self.schema().name.into()
    }

    op_as_typed_op!();
}

impl TypedOp for KernelOp {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(self.results.iter().map(|result| result.dtype.fact(inputs[result.like].shape.clone())).collect())
    }

    as_op!();
}

impl EvalOp for KernelOp {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let mut given = inputs.iter();
        let operands: TVec<Operand<'_>> = self
            .present
            .iter()
            .map(|present| match present {
                true => given.next().map_or(Ok(Operand::Absent), |tensor| operand(tensor)),
                false => Ok(Operand::Absent),
            })
            .collect::<TractResult<_>>()?;
        let call = self.kernel.signature().bind(&operands).map_err(|error| failed(self.schema(), &error))?;
        let zeros = |result: &ResultType| Tensor::zero_dt(result.dtype, inputs[result.like].shape());
        let mut results = self.results.iter().map(zeros).collect::<TractResult<TVec<Tensor>>>()?;
        {
            let mut views: Vec<_> = results.iter_mut().map(Tensor::try_as_plain_ram_mut).collect::<Result<_, _>>()?;
            let mut buffers: Vec<ResultBuffer<'_>> = views
                .iter_mut()
                .map(|view| view.as_slice_mut::<f32>().map(ResultBuffer::F32))
                .collect::<Result<_, _>>()?;
            let pool = Threads(current_tract_executor());
            self.kernel.compute(&call, &mut buffers, &pool).map_err(|error| failed(self.schema(), &error))?;
        }
        Ok(results.into_iter().map(Tensor::into_tvalue).collect())
    }
}

fn operand(tensor: &Tensor) -> TractResult<Operand<'_>> {
    let shape = Shape::new(tensor.shape());
    let shape = shape.ok_or_else(|| format_err!("expected at most 4 axes, got shape {:?}", tensor.shape()))?;
    let view = tensor.try_as_plain_ram()?;
    match tensor.datum_type() {
        DatumType::F32 => Ok(Operand::F32(shape, view.as_slice()?)),
        DatumType::I32 => Ok(Operand::I32(shape, view.as_slice()?)),
        other => bail!("expected fp32 or int32, got {other:?}"),
    }
}

/// tract's threads; the calling thread alone if tract has none.
struct Threads(Executor);

impl Pool for Threads {
    fn threads(&self) -> usize {
        match &self.0 {
            Executor::MultiThread(pool) => pool.current_num_threads(),
            _ => 1,
        }
    }

    fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) -> Result<(), Error> {
        let Executor::MultiThread(pool) = &self.0 else {
            (0..tasks).for_each(task);
            return Ok(());
        };
        let next = AtomicUsize::new(0);
        let work = || {
            let mut number = next.fetch_add(1, Ordering::Relaxed);
            while number < tasks {
                task(number);
                number = next.fetch_add(1, Ordering::Relaxed);
            }
        };
        let workers = tasks.min(pool.current_num_threads());
        catch_unwind(AssertUnwindSafe(|| pool.scope(|scope| (0..workers).for_each(|_| scope.spawn(|_| work())))))
            .map_err(|_| Error::new("threads", "a task panicked; please report this"))
    }
}
