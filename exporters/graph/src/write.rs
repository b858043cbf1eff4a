//! Writing a finished graph as ONNX. Protobuf types appear only here.

use crate::{
    Attribute, Error, Initializer, Model, Part, TensorType,
    arena::{Body, BodyId, Function, MAIN, Node, ValueId},
    literal::Literal,
};
use densessm_proto::onnx::{
    AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto,
    TensorProto, TensorShapeProto, TypeProto, ValueInfoProto,
    attribute_proto::AttributeType,
    tensor_proto::{DataLocation, DataType},
    tensor_shape_proto, type_proto,
};
use prost::Message;
use std::collections::HashMap;

/// The place of an initializer's bytes in a file beside the graph.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExternalData {
    /// Name of the file, relative to the graph's folder.
    pub file: String,
    /// Index of the first byte.
    pub offset: u64,
    /// Number of bytes.
    pub length: u64,
}

impl ExternalData {
    /// Makes a place from the file's name, the index of the first byte, and the number of bytes.
    pub fn new(file: impl Into<String>, offset: u64, length: u64) -> Self {
        Self { file: file.into(), offset, length }
    }
}

/// The first version of the format with functions, and the first with overloads of them.
const IR_FUNCTIONS: i64 = 8;
const IR_OVERLOADS: i64 = 10;
/// Protobuf messages cannot be longer.
const LARGEST_MESSAGE: usize = i32::MAX as usize;

impl Model {
    /// Returns the bytes of an ONNX file that contains all weights.
    ///
    /// `tensors` returns the elements of a tensor of the checkpoint, fp32 and in row-major order, or `None` if there is
    /// no such tensor; it is called once per tensor, in the order of declaration. Weights are prepared and stored as
    /// declared. For a graph without weights, `|_| None::<Vec<f32>>` will do.
    ///
    /// # Errors
    /// A tensor that is missing or has another number of elements, a number that the weight's storage cannot hold, and
    /// a file that would be larger than 2 GiB, the most that the format allows: use
    /// [`to_bytes_external`](Model::to_bytes_external) then.
    pub fn to_bytes<V: AsRef<[f32]>>(&self, mut tensors: impl FnMut(&Part) -> Option<V>) -> Result<Vec<u8>, Error> {
        let initializers = self.weights().flat_map(|weight| &weight.initializers);
        self.check_message(initializers.fold(0, |bytes, initializer| initializer.bytes().saturating_add(bytes)))?;
        let mut encoded: HashMap<String, Vec<u8>> = HashMap::new();
        for weight in self.weights() {
            let mut values = None;
            let read = |part: &Part, start: usize, out: &mut [f32]| {
                if start == 0 {
                    values = tensors(part);
                }
                let Some(values) = values.as_ref().map(V::as_ref) else {
                    return Err(weight.error(format!("there are no values for tensor `{}`", part.name)));
                };
                if values.len() != part.elements() {
                    let (name, expected, got) = (&part.name, part.elements(), values.len());
                    return Err(weight.error(format!("tensor `{name}`: expected {expected} elements, got {got}")));
                }
                out.copy_from_slice(&values[start..start + out.len()]);
                Ok(())
            };
            weight.encode(read, |initializer, bytes| {
                encoded.entry(initializer.name.clone()).or_default().extend(bytes);
                Ok(())
            })?;
        }
        let model =
            self.proto(|initializer| embedded(initializer, encoded.remove(&initializer.name).unwrap_or_default()));
        self.check_message(model.encoded_len())?;
        Ok(model.encode_to_vec())
    }

    fn check_message(&self, bytes: usize) -> Result<(), Error> {
        if bytes <= LARGEST_MESSAGE {
            return Ok(());
        }
        let problem =
            format!("would be a file of {bytes} bytes, at most 2 GiB are possible; store its weights beside it");
        Err(Error::new(format!("graph `{}`", self.name), problem, self.finished))
    }

    /// Returns the bytes of an ONNX file whose weights are in other files, at the places given for them: one per
    /// initializer. [`Weight::encode`](crate::Weight::encode) makes the bytes that belong there.
    pub fn to_bytes_external(&self, mut place: impl FnMut(&Initializer) -> ExternalData) -> Vec<u8> {
        self.proto(|initializer| external(initializer, place(initializer))).encode_to_vec()
    }

    fn proto(&self, weight: impl FnMut(&Initializer) -> TensorProto) -> ModelProto {
        let arena = &self.arena;
        let mut graph = self.graph_proto(MAIN, &self.name);
        graph.initializer.extend(self.weights().flat_map(|weight| &weight.initializers).map(weight));
        let overloads = arena.functions.iter().any(|function| !function.overload.is_empty());
        let domains = arena.functions.iter().map(|function| (function.domain, function.version));
        ModelProto {
            ir_version: if overloads { IR_OVERLOADS } else { IR_FUNCTIONS },
            producer_name: env!("CARGO_PKG_NAME").to_owned(),
            producer_version: env!("CARGO_PKG_VERSION").to_owned(),
            graph: Some(graph),
            opset_import: operator_sets(std::iter::once(("", self.opset)).chain(domains)),
            functions: arena.functions.iter().map(|function| self.function_proto(function)).collect(),
            ..ModelProto::default()
        }
    }

    fn graph_proto(&self, body: BodyId, name: &str) -> GraphProto {
        let body = &self.arena.bodies[body];
        let infos = |ids: &[ValueId]| ids.iter().map(|&id| self.value_info(id)).collect();
        GraphProto {
            name: name.to_owned(),
            node: self.nodes(body),
            initializer: body.literals.iter().map(|(id, literal)| tensor(self.name_of(*id), literal)).collect(),
            input: infos(&body.inputs),
            output: infos(&body.outputs),
            ..GraphProto::default()
        }
    }

    fn function_proto(&self, function: &Function) -> FunctionProto {
        let body = &self.arena.bodies[function.body];
        let names = |ids: &[ValueId]| ids.iter().map(|&id| self.name_of(id).to_owned()).collect();
        // A function has no initializers: its literals are nodes.
        let literals = body.literals.iter().map(|(id, literal)| NodeProto {
            name: self.name_of(*id).to_owned(),
            op_type: "Constant".to_owned(),
            output: vec![self.name_of(*id).to_owned()],
            attribute: vec![AttributeProto {
                name: "value".to_owned(),
                r#type: AttributeType::Tensor.into(),
                t: Some(tensor("", literal)),
                ..AttributeProto::default()
            }],
            ..NodeProto::default()
        });
        FunctionProto {
            name: function.operator.to_owned(),
            domain: function.domain.to_owned(),
            overload: function.overload.clone(),
            input: names(&body.inputs),
            output: names(&body.outputs),
            attribute: function.attributes.iter().map(|(name, _)| (*name).to_owned()).collect(),
            node: literals.chain(self.nodes(body)).collect(),
            opset_import: operator_sets([("", self.opset)]),
            ..FunctionProto::default()
        }
    }

    fn nodes(&self, body: &Body) -> Vec<NodeProto> {
        body.nodes.iter().map(|node| self.node_proto(node)).collect()
    }

    fn node_proto(&self, node: &Node) -> NodeProto {
        let mut input: Vec<String> =
            node.inputs.iter().map(|slot| slot.map_or_else(String::new, |id| self.name_of(id).to_owned())).collect();
        // An operator with repeated operands counts those left out before them.
        while node.domain.is_empty() && input.last().is_some_and(String::is_empty) {
            input.pop();
        }
        let sub_graph = node.sub_graph.map(|body| AttributeProto {
            name: "body".to_owned(),
            r#type: AttributeType::Graph.into(),
            g: Some(self.graph_proto(body, &node.name)),
            ..AttributeProto::default()
        });
        NodeProto {
            name: node.name.clone(),
            op_type: node.op.to_owned(),
            domain: node.domain.to_owned(),
            overload: node.overload.clone(),
            input,
            output: node.outputs.iter().map(|&id| self.name_of(id).to_owned()).collect(),
            attribute: node.attributes.iter().map(|(name, value)| attribute(name, value)).chain(sub_graph).collect(),
            ..NodeProto::default()
        }
    }

    fn name_of(&self, id: ValueId) -> &str {
        &self.arena.values[id].name
    }

    fn value_info(&self, id: ValueId) -> ValueInfoProto {
        let value = &self.arena.values[id];
        ValueInfoProto {
            name: value.name.clone(),
            r#type: Some(type_proto(&value.tensor)),
            ..ValueInfoProto::default()
        }
    }
}

fn operator_sets(sets: impl IntoIterator<Item = (&'static str, i64)>) -> Vec<OperatorSetIdProto> {
    let mut protos: Vec<OperatorSetIdProto> = Vec::new();
    for (domain, version) in sets {
        if protos.iter().all(|known| known.domain != domain) {
            protos.push(OperatorSetIdProto { domain: domain.to_owned(), version });
        }
    }
    protos
}

fn type_proto(tensor: &TensorType) -> TypeProto {
    let dim = tensor
        .shape
        .iter()
        .map(|dim| tensor_shape_proto::Dimension {
            value: Some(match dim.known() {
                Some(size) => tensor_shape_proto::dimension::Value::DimValue(size as i64),
                None => tensor_shape_proto::dimension::Value::DimParam(dim.to_string()),
            }),
            ..tensor_shape_proto::Dimension::default()
        })
        .collect();
    let tensor =
        type_proto::Tensor { elem_type: DataType::from(tensor.dtype).into(), shape: Some(TensorShapeProto { dim }) };
    TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() }
}

fn attribute(name: &str, value: &Attribute) -> AttributeProto {
    let proto = AttributeProto { name: name.to_owned(), ..AttributeProto::default() };
    match value {
        Attribute::Int(i) => AttributeProto { r#type: AttributeType::Int.into(), i: Some(*i), ..proto },
        Attribute::Float(f) => AttributeProto { r#type: AttributeType::Float.into(), f: Some(*f), ..proto },
        Attribute::Ints(ints) => AttributeProto { r#type: AttributeType::Ints.into(), ints: ints.clone(), ..proto },
        Attribute::Floats(floats) => {
            AttributeProto { r#type: AttributeType::Floats.into(), floats: floats.clone(), ..proto }
        }
    }
}

fn tensor(name: &str, literal: &Literal) -> TensorProto {
    TensorProto {
        name: name.to_owned(),
        dims: literal.tensor.shape.iter().filter_map(|dim| dim.known()).map(|size| size as i64).collect(),
        data_type: DataType::from(literal.tensor.dtype).into(),
        raw_data: literal.bytes.clone(),
        ..TensorProto::default()
    }
}

fn external(initializer: &Initializer, place: ExternalData) -> TensorProto {
    let entry = |key: &str, value: String| StringStringEntryProto { key: key.to_owned(), value };
    TensorProto {
        data_location: DataLocation::External.into(),
        external_data: vec![
            entry("location", place.file),
            entry("offset", place.offset.to_string()),
            entry("length", place.length.to_string()),
        ],
        ..embedded(initializer, Vec::new())
    }
}

fn embedded(initializer: &Initializer, bytes: Vec<u8>) -> TensorProto {
    TensorProto {
        name: initializer.name.clone(),
        dims: initializer.shape.iter().map(|&size| size as i64).collect(),
        data_type: DataType::from(initializer.dtype).into(),
        raw_data: bytes,
        ..TensorProto::default()
    }
}
