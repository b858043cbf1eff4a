//! ONNX models in few words.

use densessm_proto::onnx::{
    AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto,
    TensorShapeProto, TypeProto, ValueInfoProto,
    attribute_proto::AttributeType,
    tensor_proto::DataType,
    tensor_shape_proto::{Dimension, dimension},
    type_proto,
};

pub(super) const OPSET: i64 = 18;
pub(super) const DOMAIN: &str = "test";

fn strings(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// A node named after its first output.
pub(super) fn node(op: &str, input: &[&str], output: &[&str]) -> NodeProto {
    NodeProto {
        name: output.first().map(|name| format!("make_{name}")).unwrap_or_default(),
        op_type: op.to_owned(),
        input: strings(input),
        output: strings(output),
        ..NodeProto::default()
    }
}

/// A call of a function of the test's domain.
pub(super) fn call(function: &str, input: &[&str], output: &[&str]) -> NodeProto {
    NodeProto { domain: DOMAIN.to_owned(), ..node(function, input, output) }
}

pub(super) fn cast(input: &str, output: &str, to: DataType) -> NodeProto {
    with(node("Cast", &[input], &[output]), [int("to", i32::from(to).into())])
}

pub(super) fn with(mut node: NodeProto, attributes: impl IntoIterator<Item = AttributeProto>) -> NodeProto {
    node.attribute.extend(attributes);
    node
}

fn attribute(name: &str, r#type: AttributeType) -> AttributeProto {
    AttributeProto { name: name.to_owned(), r#type: r#type.into(), ..AttributeProto::default() }
}

pub(super) fn int(name: &str, i: i64) -> AttributeProto {
    AttributeProto { i: Some(i), ..attribute(name, AttributeType::Int) }
}

pub(super) fn ints(name: &str, ints: &[i64]) -> AttributeProto {
    AttributeProto { ints: ints.to_vec(), ..attribute(name, AttributeType::Ints) }
}

pub(super) fn float(name: &str, f: f32) -> AttributeProto {
    AttributeProto { f: Some(f), ..attribute(name, AttributeType::Float) }
}

pub(super) fn sub_graph(name: &str, g: GraphProto) -> AttributeProto {
    AttributeProto { g: Some(g), ..attribute(name, AttributeType::Graph) }
}

/// An attribute that the function's own attribute `of` supplies.
pub(super) fn supplied(name: &str, r#type: AttributeType, of: &str) -> AttributeProto {
    AttributeProto { ref_attr_name: of.to_owned(), ..attribute(name, r#type) }
}

pub(super) fn function(name: &str, input: &[&str], output: &[&str], node: Vec<NodeProto>) -> FunctionProto {
    FunctionProto {
        name: name.to_owned(),
        domain: DOMAIN.to_owned(),
        input: strings(input),
        output: strings(output),
        node,
        opset_import: vec![operator_set("", OPSET)],
        ..FunctionProto::default()
    }
}

pub(super) fn operator_set(domain: &str, version: i64) -> OperatorSetIdProto {
    OperatorSetIdProto { domain: domain.to_owned(), version }
}

/// A value's type; a dimension that is no number is a symbol.
pub(super) fn value(name: &str, dtype: DataType, shape: &[&str]) -> ValueInfoProto {
    let dim = shape.iter().map(|dim| Dimension {
        value: Some(match dim.parse() {
            Ok(size) => dimension::Value::DimValue(size),
            Err(_) => dimension::Value::DimParam((*dim).to_owned()),
        }),
        ..Dimension::default()
    });
    let shape = Some(TensorShapeProto { dim: dim.collect() });
    let tensor = type_proto::Tensor { elem_type: dtype.into(), shape };
    let r#type = Some(TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() });
    ValueInfoProto { name: name.to_owned(), r#type, ..ValueInfoProto::default() }
}

pub(super) fn floats(name: &str, dims: &[i64], numbers: &[f32]) -> TensorProto {
    TensorProto {
        name: name.to_owned(),
        dims: dims.to_vec(),
        data_type: DataType::Float.into(),
        raw_data: numbers.iter().flat_map(|number| number.to_le_bytes()).collect(),
        ..TensorProto::default()
    }
}

pub(super) fn integers(name: &str, dims: &[i64], numbers: &[i64]) -> TensorProto {
    TensorProto {
        name: name.to_owned(),
        dims: dims.to_vec(),
        data_type: DataType::Int64.into(),
        raw_data: numbers.iter().flat_map(|number| number.to_le_bytes()).collect(),
        ..TensorProto::default()
    }
}

pub(super) fn graph(
    input: Vec<ValueInfoProto>,
    output: Vec<ValueInfoProto>,
    initializer: Vec<TensorProto>,
    node: Vec<NodeProto>,
) -> GraphProto {
    GraphProto { name: "graph".to_owned(), node, initializer, input, output, ..GraphProto::default() }
}

pub(super) fn model(graph: GraphProto, functions: Vec<FunctionProto>) -> ModelProto {
    ModelProto {
        ir_version: 10,
        opset_import: vec![operator_set("", OPSET), operator_set(DOMAIN, 1)],
        graph: Some(graph),
        functions,
        ..ModelProto::default()
    }
}
