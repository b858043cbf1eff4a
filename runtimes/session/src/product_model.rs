//! A matrix product as an ONNX model.

use crate::Product;
use densessm_proto::{
    DType,
    onnx::{
        GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto, TypeProto,
        ValueInfoProto,
        tensor_proto::DataType,
        tensor_shape_proto::{Dimension, dimension},
        type_proto,
    },
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
            data_type: self.data_type().into(),
            dims: vec![self.inner as i64, self.columns as i64],
            raw_data: self.bytes(self.inner * self.columns),
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
            input: vec![self.matrix(Self::INPUT, [self.rows, self.inner])],
            output: vec![self.matrix(Self::OUTPUT, [self.rows, self.columns])],
            ..GraphProto::default()
        };
        ModelProto {
            ir_version: 8,
            opset_import: vec![OperatorSetIdProto { domain: String::new(), version: 18 }],
            graph: Some(graph),
            ..ModelProto::default()
        }
    }

    fn data_type(self) -> DataType {
        match self.dtype {
            DType::F16 => DataType::Float16,
            DType::BF16 => DataType::Bfloat16,
            _ => DataType::Float,
        }
    }

    fn matrix(self, name: &str, shape: [usize; 2]) -> ValueInfoProto {
        let size =
            |size: usize| Dimension { value: Some(dimension::Value::DimValue(size as i64)), ..Dimension::default() };
        let shape = TensorShapeProto { dim: shape.map(size).to_vec() };
        let tensor = type_proto::Tensor { elem_type: self.data_type().into(), shape: Some(shape) };
        let r#type = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() };
        ValueInfoProto { name: name.to_owned(), r#type: Some(r#type), ..ValueInfoProto::default() }
    }
}
