//! One matrix product as a whole model: what a runtime's ceiling is measured with.

use densessm_proto::onnx::{
    GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto, TypeProto, ValueInfoProto,
    tensor_proto::DataType,
    tensor_shape_proto::{Dimension, dimension},
    type_proto,
};
use std::time::{Duration, Instant};

/// So many runs at least must have been as quick as what [`min_time`] returns: on a virtual machine a single run is now
/// and then timed far shorter than all others.
const AGREEING: usize = 3;

/// `y = x W` in fp32: `[rows, inner] × [inner, columns]`, where `W` is a weight of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Product {
    /// Rows of `x`.
    pub rows: usize,
    /// Columns of `x`.
    pub inner: usize,
    /// Columns of `W`.
    pub columns: usize,
}

impl Product {
    /// Name of the model's input.
    pub const INPUT: &'static str = "x";
    /// Name of the model's output.
    pub const OUTPUT: &'static str = "y";

    /// Floating-point operations: a product and a sum for each element of `W` and row of `x`.
    pub fn flops(self) -> u64 {
        2 * (self.rows * self.inner * self.columns) as u64
    }

    /// Bytes of `W`.
    pub fn weight_bytes(self) -> u64 {
        (self.inner * self.columns * size_of::<f32>()) as u64
    }

    /// `x`, row after row.
    pub fn input(self) -> Vec<f32> {
        (0..self.rows * self.inner).map(value).collect()
    }

    /// The model, its weight inside.
    pub fn model(self) -> ModelProto {
        let weight = TensorProto {
            name: "w".to_owned(),
            data_type: DataType::Float.into(),
            dims: vec![self.inner as i64, self.columns as i64],
            raw_data: (0..self.inner * self.columns).flat_map(|at| value(at).to_le_bytes()).collect(),
            ..TensorProto::default()
        };
        let node = NodeProto {
            name: "product".to_owned(),
            op_type: "MatMul".to_owned(),
            input: vec![Self::INPUT.to_owned(), weight.name.clone()],
            output: vec![Self::OUTPUT.to_owned()],
            ..NodeProto::default()
        };
        let graph = GraphProto {
            name: "product".to_owned(),
            node: vec![node],
            initializer: vec![weight],
            input: vec![matrix(Self::INPUT, [self.rows, self.inner])],
            output: vec![matrix(Self::OUTPUT, [self.rows, self.columns])],
            ..GraphProto::default()
        };
        ModelProto {
            ir_version: 8,
            opset_import: vec![OperatorSetIdProto { domain: String::new(), version: 18 }],
            graph: Some(graph),
            ..ModelProto::default()
        }
    }
}

/// Runs something once to warm up and then again and again for that long, at least three times: the time in which it
/// was done at least three times.
///
/// # Errors
/// The first error of a run.
pub fn min_time<E>(budget: Duration, mut run: impl FnMut() -> Result<(), E>) -> Result<Duration, E> {
    run()?;
    let (begin, mut times) = (Instant::now(), Vec::new());
    while times.len() < AGREEING || begin.elapsed() < budget {
        let start = Instant::now();
        run()?;
        times.push(start.elapsed());
    }
    times.sort_unstable();
    Ok(times[AGREEING - 1])
}

/// Neither zeros, which a processor may be quick at, nor numbers so small that it is slow.
fn value(at: usize) -> f32 {
    ((at % 61) as f32 - 30.0) / 64.0
}

fn matrix(name: &str, shape: [usize; 2]) -> ValueInfoProto {
    let size = |size: usize| Dimension { value: Some(dimension::Value::DimValue(size as i64)), ..Dimension::default() };
    let shape = TensorShapeProto { dim: shape.map(size).to_vec() };
    let tensor = type_proto::Tensor { elem_type: DataType::Float.into(), shape: Some(shape) };
    let r#type = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() };
    ValueInfoProto { name: name.to_owned(), r#type: Some(r#type), ..ValueInfoProto::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_time_it_is_warmed_up_once_and_run_three_times() {
        let mut runs = 0;
        let time = min_time(Duration::ZERO, || {
            runs += 1;
            Ok::<(), ()>(())
        });
        assert!(time.is_ok());
        assert_eq!(runs, 4);
    }

    #[test]
    fn a_run_that_fails_is_the_last() {
        let mut runs = 0;
        let time = min_time(Duration::MAX, || {
            runs += 1;
            if runs == 2 { Err(runs) } else { Ok(()) }
        });
        assert_eq!(time, Err(2));
    }
}
