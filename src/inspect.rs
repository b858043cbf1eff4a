//! Reports the content of a graph and the cost of a token, as read from the file itself.

use densessm_proto::{
    DType, GraphKind, Manifest,
    onnx::{
        GraphProto, NodeProto, TensorProto, ValueInfoProto, tensor_proto::DataType, tensor_shape_proto, type_proto,
    },
    operators::{DOMAIN, SCHEMAS, Schema},
};
use densessm_session::{Bundle, Error, onnx::OnnxFile};
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
#[non_exhaustive]
pub struct TokenCost {
    /// The element type in which most of the weights are stored.
    pub dtype: DType,
    /// Floating-point operations in matrix products with weights.
    pub projection_flops: u64,
    /// The part of them that belongs to the output head, which only the last token of a prompt needs.
    pub head_flops: u64,
    /// Floating-point operations in the recurrence: the states' update and read-out, an exponential counted as one.
    pub recurrence_flops: u64,
    /// Bytes of weights read, as they are stored; one row of the embedding, unless the embedding is the output head too.
    pub weight_bytes: u64,
    /// Bytes of weights read where half-precision weights are widened to fp32 when they are loaded, as on the CPU.
    pub widened_weight_bytes: u64,
    /// Bytes of states read and written.
    pub state_bytes: u64,
}

/// Reads a graph file.
///
/// # Errors
/// When the file cannot be read, is not ONNX, or contains no graph.
pub fn graph(path: &Path) -> Result<GraphReport, Error> {
    let OnnxFile { path, bytes: file_bytes, model, graph } = OnnxFile::read(path)?;
    let mut operators = BTreeMap::new();
    count(&graph, &mut operators);
    let called = |schema: &&Schema| operators.contains_key(&format!("{DOMAIN}.{}", schema.name));
    let schemas = SCHEMAS.into_iter().filter(called).collect();
    let mut weights = BTreeMap::new();
    for tensor in &graph.initializer {
        let (number, bytes) = weights.entry(dtype(tensor.data_type)).or_insert((0, 0));
        *number += 1;
        *bytes += tensor_bytes(tensor);
    }
    Ok(GraphReport {
        path,
        file_bytes,
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
        projection_flops: projection_flops(&graph),
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
    let dtype = report.dtype();
    let (stored, elements) = (report.bytes_of(|_| true), unread_embedding_elements(manifest));
    let halves = report.bytes_of(|name| ["float16", "bfloat16"].contains(&name));
    let widened = if dtype.size() == 2 { DType::F32.size() } else { dtype.size() };
    Ok(TokenCost {
        dtype,
        projection_flops: report.projection_flops,
        head_flops: 2 * (manifest.architecture.hidden_size() * manifest.architecture.vocab_size()) as u64,
        recurrence_flops: manifest.architecture.family().recurrence_flops() as u64,
        weight_bytes: stored.saturating_sub(elements * dtype.size() as u64),
        widened_weight_bytes: (stored + halves).saturating_sub(elements * widened as u64),
        state_bytes: 2 * manifest.state_bytes_per_sequence,
    })
}

/// Elements of the embedding that a token does not read: all rows but one, unless the output head reads them.
fn unread_embedding_elements(manifest: &Manifest) -> u64 {
    let family = manifest.architecture.family();
    let (vocab, hidden) = (family.vocab_size(), family.hidden_size());
    if family.tie_word_embeddings() { 0 } else { ((vocab - 1) * hidden) as u64 }
}

impl GraphReport {
    /// The floating-point type that most bytes of the weights have; fp32 if there are none.
    fn dtype(&self) -> DType {
        let floats = [("float", DType::F32), ("float16", DType::F16), ("bfloat16", DType::BF16)];
        let most = floats.into_iter().max_by_key(|(name, _)| self.bytes_of(|other| other == *name));
        most.filter(|(name, _)| self.weights.contains_key(*name)).map_or(DType::F32, |(_, dtype)| dtype)
    }

    fn bytes_of(&self, of: impl Fn(&str) -> bool) -> u64 {
        self.weights.iter().filter(|(name, _)| of(name)).map(|(_, (_, bytes))| bytes).sum()
    }
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

/// Floating-point operations per row in products with weights: two per element of each weight. Half-precision weights reach
/// a product converted and transposed.
fn projection_flops(graph: &GraphProto) -> u64 {
    let weights: HashMap<&str, &TensorProto> =
        graph.initializer.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect();
    let standard =
        |node: &&NodeProto, names: [&str; 2]| node.domain.is_empty() && names.contains(&node.op_type.as_str());
    let prepared = graph.node.iter().filter(|node| standard(node, ["Cast", "Transpose"]));
    let prepared: HashMap<&str, &str> =
        prepared.filter_map(|node| Some((node.output.first()?.as_str(), node.input.first()?.as_str()))).collect();
    let weight = |name: &String| {
        let mut name = name.as_str();
        // Nodes are in the order of computation, so that this ends.
        while let Some(before) = prepared.get(name) {
            name = before;
        }
        weights.get(name).copied()
    };
    let operands = graph.node.iter().filter(|node| standard(node, ["MatMul", "Gemm"])).flat_map(|node| &node.input);
    operands.filter_map(weight).map(|weight| 2 * elements(weight)).sum()
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
    use densessm_proto::onnx::ModelProto;
    use prost::Message;

    #[test]
    fn a_weight_that_is_converted_and_transposed_counts_in_its_product() {
        let node = |op_type: &str, input: &[&str], output: &str| NodeProto {
            op_type: op_type.to_owned(),
            input: input.iter().map(|name| (*name).to_owned()).collect(),
            output: vec![output.to_owned()],
            ..NodeProto::default()
        };
        let weight = |name: &str| TensorProto { name: name.to_owned(), dims: vec![3, 5], ..TensorProto::default() };
        let graph = GraphProto {
            node: vec![
                node("Cast", &["half"], "wide"),
                node("Transpose", &["wide"], "transposed"),
                node("MatMul", &["x", "transposed"], "y"),
                node("MatMul", &["y", "plain"], "z"),
                node("Gather", &["half", "ids"], "row"),
            ],
            initializer: vec![weight("half"), weight("plain")],
            ..GraphProto::default()
        };
        assert_eq!(projection_flops(&graph), 2 * 2 * 15);
    }

    #[test]
    fn the_element_type_is_that_of_most_bytes() {
        let report = |weights: &[(&str, u64)]| GraphReport {
            path: PathBuf::new(),
            file_bytes: 0,
            operator_sets: BTreeMap::new(),
            operators: BTreeMap::new(),
            schemas: Vec::new(),
            functions: Vec::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            weights: weights.iter().map(|(name, bytes)| ((*name).to_owned(), (1, *bytes))).collect(),
            projection_flops: 0,
        };
        assert_eq!(report(&[]).dtype(), DType::F32);
        assert_eq!(report(&[("int64", 900), ("float", 8)]).dtype(), DType::F32);
        let half = report(&[("float", 8), ("bfloat16", 100)]);
        assert_eq!((half.dtype(), half.bytes_of(|_| true)), (DType::BF16, 108));
    }

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
