//! The `ai.densessm` operators as tract's: the kernels that ONNX Runtime has, on tract's tensors and threads.

use densessm_kernels::{Attributes, Definition, Error, Kernel, Level, OPERATORS, Operand, Pool, Shape};
use densessm_proto::operators::DOMAIN;
use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::{AtomicUsize, Ordering},
};
use tract_linalg::multithread::{Executor, current_tract_executor};
use tract_onnx::{model::ParsingContext, pb::NodeProto, prelude::*, tract_hir::internal::*};

/// Whether there is a kernel for an operator.
pub(crate) fn known(domain: &str, name: &str) -> bool {
    domain == DOMAIN && OPERATORS.iter().any(|definition| definition.name == name)
}

/// Adds all operators to tract's register.
pub(crate) fn register(onnx: &mut tract_onnx::Onnx) {
    for definition in OPERATORS {
        onnx.op_register.insert(definition.name, parse);
    }
}

fn parse(_: &ParsingContext<'_>, node: &NodeProto) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    let definition = OPERATORS.into_iter().find(|definition| definition.name == node.op_type);
    let definition = definition.ok_or_else(|| format_err!("no operator {}", node.op_type))?;
    let attributes = Given {
        integers: ["heads", "neighbours"].map(|name| node.get_attr_opt(name)).into_iter().collect::<Result<_, _>>()?,
        epsilon: node.get_attr_opt::<f32>("epsilon")?.map(f32::to_bits),
    };
    let present: Vec<bool> = node.input.iter().map(|name| !name.is_empty()).collect();
    let kernel = definition.kernel(&attributes, Level::best()).map_err(|error| failed(&definition, &error))?;
    Ok((expand(KernelOp { definition, attributes, present, kernel: kernel.into() }), Vec::new()))
}

/// A node's attributes, of those that the operators have.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Given {
    /// Heads and neighbours.
    integers: Vec<Option<i64>>,
    /// Its bits, which are comparable.
    epsilon: Option<u32>,
}

impl Attributes for Given {
    fn integer(&self, name: &str) -> Option<i64> {
        self.integers[usize::from(name == "neighbours")]
    }

    fn float(&self, _: &str) -> Option<f32> {
        self.epsilon.map(f32::from_bits)
    }
}

/// A kernel as a node.
#[derive(Clone)]
struct KernelOp {
    definition: Definition,
    attributes: Given,
    /// Which of the operands are there; tract passes on only those.
    present: Vec<bool>,
    kernel: Arc<dyn Kernel>,
}

impl PartialEq for KernelOp {
    fn eq(&self, other: &Self) -> bool {
        let key = |op: &Self| (op.definition.name, op.attributes.clone(), op.present.clone());
        key(self) == key(other)
    }
}

impl Eq for KernelOp {}

impl fmt::Debug for KernelOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct(self.definition.name).field("attributes", &self.attributes).finish_non_exhaustive()
    }
}

fn failed(definition: &Definition, error: &Error) -> TractError {
    format_err!("{}: {error}", definition.name)
}

impl KernelOp {
    /// Which of tract's inputs has the shape of a result.
    fn like(&self, result: usize) -> TractResult<usize> {
        let operand = self.definition.results[result];
        ensure!(self.present.get(operand) == Some(&true), "{}: an operand is missing", self.definition.name);
        Ok(self.present[..operand].iter().filter(|present| **present).count())
    }

    fn shapes<T>(&self, of: impl Fn(usize) -> TractResult<T>) -> TractResult<TVec<T>> {
        (0..self.definition.results.len()).map(|result| of(self.like(result)?)).collect()
    }
}

impl Expansion for KernelOp {
    fn name(&self) -> StaticName {
        self.definition.name.into()
    }

    fn nboutputs(&self) -> TractResult<usize> {
        Ok(self.definition.results.len())
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        s: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        check_output_arity(outputs, self.definition.results.len())?;
        for (result, output) in outputs.iter().enumerate() {
            s.equals(&output.datum_type, DatumType::F32)?;
            s.equals(&output.shape, &inputs[self.like(result)?].shape)?;
        }
        Ok(())
    }

    fn wire(&self, prefix: &str, model: &mut TypedModel, inputs: &[OutletId]) -> TractResult<TVec<OutletId>> {
        model.wire_node(prefix, self.clone(), inputs)
    }
}

impl Op for KernelOp {
    fn name(&self) -> StaticName {
        self.definition.name.into()
    }

    op_as_typed_op!();
}

impl TypedOp for KernelOp {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        self.shapes(|input| Ok(f32::fact(inputs[input].shape.clone())))
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
        let mut results = self.shapes(|input| Tensor::zero::<f32>(inputs[input].shape()))?;
        {
            let mut views: Vec<_> = results.iter_mut().map(Tensor::try_as_plain_ram_mut).collect::<Result<_, _>>()?;
            let mut buffers: Vec<&mut [f32]> =
                views.iter_mut().map(|view| view.as_slice_mut::<f32>()).collect::<Result<_, _>>()?;
            let pool = Threads(current_tract_executor());
            self.kernel.run(&operands, &mut buffers, &pool).map_err(|error| failed(&self.definition, &error))?;
        }
        Ok(results.into_iter().map(Tensor::into_tvalue).collect())
    }
}

fn operand(tensor: &Tensor) -> TractResult<Operand<'_>> {
    let shape = Shape::new(tensor.shape());
    let shape = shape.ok_or_else(|| format_err!("expected at most 4 axes, got shape {:?}", tensor.shape()))?;
    let view = tensor.try_as_plain_ram()?;
    match tensor.datum_type() {
        DatumType::F32 => Ok(Operand::Floats(shape, view.as_slice()?)),
        DatumType::I32 => Ok(Operand::Integers(shape, view.as_slice()?)),
        other => bail!("expected fp32 or int32, got {other:?}"),
    }
}

/// tract's threads, where it has any.
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
