//! A matrix product as an ONNX model.

use crate::{Product, product::value};
use densessm_proto::onnx::{
    GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto, TypeProto, ValueInfoProto,
    tensor_proto::DataType,
    tensor_shape_proto::{Dimension, dimension},
    type_proto,
};
use prost::Message;

impl Product {
    /// Returns the product as a serialized ONNX model that contains the weight. Needs the cargo feature `onnx`.
    pub fn model_bytes(self) -> Vec<u8> {
        self.model().encode_to_vec()
    }

    fn model(self) -> ModelProto {
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

fn matrix(name: &str, shape: [usize; 2]) -> ValueInfoProto {
    let size = |size: usize| Dimension { value: Some(dimension::Value::DimValue(size as i64)), ..Dimension::default() };
    let shape = TensorShapeProto { dim: shape.map(size).to_vec() };
    let tensor = type_proto::Tensor { elem_type: DataType::Float.into(), shape: Some(shape) };
    let r#type = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() };
    ValueInfoProto { name: name.to_owned(), r#type: Some(r#type), ..ValueInfoProto::default() }
}
