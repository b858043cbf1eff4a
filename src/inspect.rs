//! Reports the content of a graph and the cost of a token, as read from the file itself.

use densessm_proto::{
    GraphKind, Manifest,
    onnx::{
        GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, tensor_proto::DataType, tensor_shape_proto,
        type_proto,
    },
    operators::{DOMAIN, SCHEMAS, Schema},
};
use densessm_session::{Bundle, Error};
use prost::Message;
use serde::Serialize;
use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
};

/// Describes the content of an `.onnx` file.
#[derive(Clone, Debug)]
pub struct GraphReport {
    /// Path of the file.
    pub path: PathBuf,
    /// Size of the file in bytes.
    pub file_bytes: u64,
    /// Versions of the operator sets, by domain.
    pub operator_sets: BTreeMap<String, i64>,
    /// Number of nodes by operator, a call of a function counted as one; `domain.Name` for custom operators.
    pub operators: BTreeMap<String, usize>,
    /// Schemas of the operators of the domain `ai.densessm` that the graph calls.
    pub schemas: Vec<&'static Schema>,
    /// Names of the functions in the file, with the number of nodes in each body.
    pub functions: Vec<(String, usize)>,
    /// Inputs as `name: type[shape]`.
    pub inputs: Vec<String>,
    /// Outputs as `name: type[shape]`.
    pub outputs: Vec<String>,
    /// Number of weights and their bytes, by element type.
    pub weights: BTreeMap<String, (usize, u64)>,
    /// Floating-point operations in matrix products with weights, per row: two per element.
    pub projection_flops: u64,
}

/// The cost of one token of one sequence in the recurrent graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct TokenCost {
    /// Floating-point operations in matrix products with weights.
    pub projection_flops: u64,
    /// The part of them that belongs to the output head, which only the last token of a prompt needs.
    pub head_flops: u64,
    /// Floating-point operations in the recurrence: the states' update and read-out, an exponential counted as one.
    pub recurrence_flops: u64,
    /// Bytes of weights read; one row of the embedding, unless the embedding is the output head too.
    pub weight_bytes: u64,
    /// Bytes of states read and written.
    pub state_bytes: u64,
}

/// Reads a graph file.
///
/// # Errors
/// When the file cannot be read or is not ONNX.
pub fn graph(path: &Path) -> Result<GraphReport, Error> {
    let bytes = std::fs::read(path).map_err(|error| Error::Io { path: path.to_owned(), error })?;
    let problem = |problem: String| Error::Bundle { path: path.to_owned(), problem };
    let model = ModelProto::decode(bytes.as_slice()).map_err(|error| problem(format!("not an ONNX file: {error}")))?;
    let graph = model.graph.as_ref().ok_or_else(|| problem("not an ONNX file: it has no graph".to_owned()))?;
    let mut operators = BTreeMap::new();
    count(graph, &mut operators);
    let called = |schema: &&Schema| operators.contains_key(&format!("{DOMAIN}.{}", schema.name));
    let schemas = SCHEMAS.into_iter().filter(called).collect();
    let mut weights = BTreeMap::new();
    for tensor in &graph.initializer {
        let (number, bytes) = weights.entry(dtype(tensor.data_type)).or_insert((0, 0));
        *number += 1;
        *bytes += tensor_bytes(tensor);
    }
    Ok(GraphReport {
        path: path.to_owned(),
        file_bytes: bytes.len() as u64,
        operator_sets: model
            .opset_import
            .iter()
            .map(|set| (if set.domain.is_empty() { "ai.onnx" } else { &set.domain }.to_owned(), set.version))
            .collect(),
        operators,
        schemas,
        functions: model
            .functions
            .iter()
            .map(|f| {
                let overload =
                    if f.overload.is_empty() { String::new() } else { format!(" (overload {})", f.overload) };
                (format!("{}.{}{overload}", f.domain, f.name), f.node.len())
            })
            .collect(),
        inputs: graph.input.iter().map(typed).collect(),
        outputs: graph.output.iter().map(typed).collect(),
        weights,
        projection_flops: projection_flops(graph),
    })
}

/// Computes the cost of a token from a bundle's manifest and its recurrent graph, or its parallel graph if there is no
/// other.
///
/// # Errors
/// When the graph cannot be read.
pub fn token_cost(bundle: &Bundle) -> Result<TokenCost, Error> {
    let manifest = bundle.manifest();
    let kind = manifest.graph(GraphKind::Recurrent).map_or(GraphKind::Parallel, |graph| graph.kind);
    let report = graph(&bundle.graph_path(kind)?)?;
    let all: u64 = report.weights.values().map(|(_, bytes)| bytes).sum();
    Ok(TokenCost {
        projection_flops: report.projection_flops,
        head_flops: 2 * (manifest.architecture.hidden_size() * manifest.architecture.vocab_size()) as u64,
        recurrence_flops: manifest.architecture.family().recurrence_flops() as u64,
        weight_bytes: all - unread_embedding_bytes(manifest),
        state_bytes: 2 * manifest.state_bytes_per_sequence,
    })
}

/// Bytes of the embedding that a token does not read: all rows but one, unless the output head reads them.
fn unread_embedding_bytes(manifest: &Manifest) -> u64 {
    let family = manifest.architecture.family();
    let (vocab, hidden) = (family.vocab_size(), family.hidden_size());
    if family.tie_word_embeddings() { 0 } else { ((vocab - 1) * hidden * size_of::<f32>()) as u64 }
}

fn count(graph: &GraphProto, operators: &mut BTreeMap<String, usize>) {
    for node in &graph.node {
        let name =
            if node.domain.is_empty() { node.op_type.clone() } else { format!("{}.{}", node.domain, node.op_type) };
        *operators.entry(name).or_insert(0) += 1;
        for attribute in &node.attribute {
            if let Some(sub_graph) = &attribute.g {
                count(sub_graph, operators);
            }
        }
    }
}

/// Floating-point operations per row in products with weights: two per element of each weight.
fn projection_flops(graph: &GraphProto) -> u64 {
    let weights: HashMap<&str, &TensorProto> =
        graph.initializer.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect();
    let product = |node: &&NodeProto| node.domain.is_empty() && (node.op_type == "MatMul" || node.op_type == "Gemm");
    let operands = graph.node.iter().filter(product).flat_map(|node| &node.input);
    operands.filter_map(|name| weights.get(name.as_str())).map(|weight| 2 * elements(weight)).sum()
}

fn elements(tensor: &TensorProto) -> u64 {
    tensor.dims.iter().map(|&size| size.unsigned_abs()).product()
}

fn tensor_bytes(tensor: &TensorProto) -> u64 {
    let bits = match DataType::try_from(tensor.data_type) {
        Ok(DataType::Float | DataType::Int32 | DataType::Uint32) => 32,
        Ok(DataType::Double | DataType::Int64 | DataType::Uint64) => 64,
        Ok(DataType::Float16 | DataType::Bfloat16 | DataType::Int16 | DataType::Uint16) => 16,
        Ok(DataType::Int4 | DataType::Uint4) => 4,
        _ => 8,
    };
    (elements(tensor) * bits).div_ceil(8)
}

fn dtype(data_type: i32) -> String {
    DataType::try_from(data_type).map_or_else(|_| format!("type {data_type}"), |t| t.as_str_name().to_lowercase())
}

fn typed(info: &ValueInfoProto) -> String {
    let Some(type_proto::Value::TensorType(tensor)) = info.r#type.as_ref().and_then(|t| t.value.as_ref()) else {
        return info.name.clone();
    };
    let dims: Vec<String> = tensor
        .shape
        .iter()
        .flat_map(|shape| &shape.dim)
        .map(|dim| match &dim.value {
            Some(tensor_shape_proto::dimension::Value::DimValue(size)) => size.to_string(),
            Some(tensor_shape_proto::dimension::Value::DimParam(symbol)) => symbol.clone(),
            None => "?".to_owned(),
        })
        .collect();
    format!("{}: {}[{}]", info.name, dtype(tensor.elem_type), dims.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operators_of_the_domain_are_described_by_their_schemas() {
        let node = |domain: &str, op_type: &str| NodeProto {
            domain: domain.to_owned(),
            op_type: op_type.to_owned(),
            ..NodeProto::default()
        };
        let node = vec![node(DOMAIN, "SelectiveStep"), node("other", "Retention"), node("", "MatMul")];
        let model = ModelProto { graph: Some(GraphProto { node, ..GraphProto::default() }), ..ModelProto::default() };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("graph.onnx");
        std::fs::write(&path, model.encode_to_vec()).unwrap();
        let report = graph(&path).unwrap();
        assert_eq!(report.schemas.iter().map(|schema| schema.name).collect::<Vec<_>>(), ["SelectiveStep"]);
        assert_eq!(report.operators.len(), 3);
    }
}
