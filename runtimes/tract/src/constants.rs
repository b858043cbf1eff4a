//! Matrices in half precision as fp32 constants, which the graphs of a model share.
//!
//! tract has no bf16, and would keep an fp16 matrix and its fp32 copy once for each graph. The graphs are therefore
//! parsed with an input in place of each widened matrix, which then becomes a constant.

use densessm_proto::onnx::{
    TensorShapeProto, TypeProto, ValueInfoProto, tensor_proto::DataType, tensor_shape_proto, type_proto,
};
use densessm_session::{
    Bundle, Error,
    onnx::{OnnxFile, Widened, read_all},
};
use std::collections::BTreeMap;
use tract_onnx::{prelude::*, tract_hir::internal::TypedModelPatch};

/// Widened matrices by name.
#[derive(Default)]
pub(crate) struct Constants(BTreeMap<String, Arc<Tensor>>);

impl Constants {
    /// Makes a graph read widened matrices, as inputs after its own, and reads those that are not here yet.
    pub(crate) fn widen(&mut self, bundle: &Bundle, file: &mut OnnxFile) -> Result<(), Error> {
        let matrices = file.widen(true)?;
        file.graph.input.extend(matrices.iter().map(input));
        let new: Vec<&Widened> = matrices.iter().filter(|matrix| !self.0.contains_key(&matrix.name)).collect();
        let mut numbers: Vec<Vec<f32>> = new.iter().map(|matrix| vec![0.0; matrix.elements()]).collect();
        read_all(bundle, new.iter().copied().zip(numbers.iter_mut().map(Vec::as_mut_slice)))?;
        for (matrix, numbers) in new.into_iter().zip(numbers) {
            let tensor = Tensor::from_shape(&matrix.shape(), &numbers)
                .map_err(|error| file.broken(format!("tensor `{}`: {error}", matrix.name)))?;
            self.0.insert(matrix.name.clone(), tensor.into_arc_tensor());
        }
        Ok(())
    }

    /// Turns the inputs that stand for widened matrices into constants.
    pub(crate) fn place(&self, model: &mut TypedModel) -> TractResult<()> {
        let inputs = model.input_outlets()?.to_vec();
        let name = |model: &TypedModel, input: &OutletId| model.node(input.node).name.clone();
        let own = inputs.iter().filter(|input| !self.0.contains_key(&name(model, input))).copied().collect::<Vec<_>>();
        for input in &inputs {
            if let Some(constant) = self.0.get(&name(model, input)) {
                let mut patch = TypedModelPatch::default();
                let outlet = patch.add_const(format!("{}/constant", name(model, input)), Arc::clone(constant))?;
                patch.shunt_outside(model, *input, outlet)?;
                patch.apply(model)?;
            }
        }
        model.set_input_outlets(&own)
    }
}

/// The input that stands for a matrix.
fn input(matrix: &Widened) -> ValueInfoProto {
    let dim = matrix.shape().map(|size| tensor_shape_proto::Dimension {
        value: Some(tensor_shape_proto::dimension::Value::DimValue(size as i64)),
        ..tensor_shape_proto::Dimension::default()
    });
    let tensor =
        type_proto::Tensor { elem_type: DataType::Float.into(), shape: Some(TensorShapeProto { dim: dim.to_vec() }) };
    ValueInfoProto {
        name: matrix.name.clone(),
        r#type: Some(TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() }),
        ..ValueInfoProto::default()
    }
}
