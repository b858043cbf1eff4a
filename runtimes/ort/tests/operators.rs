//! The operators as ONNX Runtime registers them: those for the CPU and for GPUs under one name.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use densessm_bundle::{ExportOptions, export};
use densessm_checkpoint::Checkpoint;
use densessm_ort_operators::{Placement, domain_with_placement};
use densessm_proto::{
    GraphKind,
    onnx::{
        FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TypeProto, ValueInfoProto,
        tensor_proto::DataType,
        tensor_shape_proto::{Dimension, dimension},
        type_proto,
    },
    operators::DOMAIN,
};
use densessm_session::{Bundle, onnx::OnnxFile};
use ort::{environment::Environment, ep::CUDA, session::Session};
use prost::Message;
use std::{
    collections::BTreeSet,
    ops::ControlFlow,
    path::Path,
    sync::{Arc, OnceLock},
};
use tempfile::TempDir;

fn exported(name: &str) -> (TempDir, Bundle) {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens").join(name);
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("bundle");
    let checkpoint = Checkpoint::open(&model).unwrap();
    export(&checkpoint, &out, &ExportOptions::default(), |_| ControlFlow::Continue(())).unwrap();
    let bundle = Bundle::open(&out).unwrap();
    (folder, bundle)
}

/// ONNX Runtime, of which a process may have one environment.
fn environment() -> &'static Environment {
    static ENVIRONMENT: OnceLock<Environment> = OnceLock::new();
    ENVIRONMENT.get_or_init(|| {
        let path = densessm_ort::library().unwrap_or_else(|error| panic!("{error}\n(set ORT_DYLIB_PATH)"));
        ort::init_from(path).unwrap().build().unwrap()
    })
}

fn value(name: &str, dtype: DataType, sizes: &[i64]) -> ValueInfoProto {
    let dim =
        sizes.iter().map(|&size| Dimension { value: Some(dimension::Value::DimValue(size)), ..Dimension::default() });
    let shape = densessm_proto::onnx::TensorShapeProto { dim: dim.collect() };
    let tensor = type_proto::Tensor { elem_type: dtype.into(), shape: Some(shape) };
    let r#type = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() };
    ValueInfoProto { name: name.to_owned(), r#type: Some(r#type), ..ValueInfoProto::default() }
}

fn node(domain: &str, op: &str, input: &[&str], output: &[&str]) -> NodeProto {
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let (domain, op_type) = (domain.to_owned(), op.to_owned());
    NodeProto {
        name: op_type.clone(),
        domain,
        op_type,
        input: names(input),
        output: names(output),
        ..NodeProto::default()
    }
}

/// A causal convolution whose function returns its operands, with activations of some type.
fn convolution(activation: DataType) -> Vec<u8> {
    let opsets = || {
        let opset = |domain: &str, version| OperatorSetIdProto { domain: domain.to_owned(), version };
        vec![opset("", 18), opset(DOMAIN, 1)]
    };
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let function = FunctionProto {
        name: "CausalConv".to_owned(),
        domain: DOMAIN.to_owned(),
        input: names(&["u", "weight", "state"]),
        output: names(&["y", "present"]),
        node: vec![node("", "Identity", &["u"], &["y"]), node("", "Identity", &["state"], &["present"])],
        opset_import: opsets(),
        ..FunctionProto::default()
    };
    let graph = GraphProto {
        name: "convolution".to_owned(),
        node: vec![
            node(DOMAIN, "CausalConv", &["u", "weight", "state"], &["y", "present"]),
            // Its type is known only if that of `y` is.
            node("", "Neg", &["y"], &["z"]),
        ],
        input: vec![
            value("u", activation, &[1, 2, 4]),
            value("weight", DataType::Float, &[4, 4]),
            value("state", DataType::Float, &[1, 4, 3]),
        ],
        output: vec![value("z", activation, &[1, 2, 4]), value("present", DataType::Float, &[1, 4, 3])],
        ..GraphProto::default()
    };
    let model = ModelProto {
        ir_version: 10,
        opset_import: opsets(),
        graph: Some(graph),
        functions: vec![function],
        ..ModelProto::default()
    };
    model.encode_to_vec()
}

/// Types are inferred from the operands, though several kernels of one name take different ones. A session on the CPU
/// converts fp16 operands for the kernel in fp32.
#[test]
fn half_precision_activations_load_on_the_cpu() {
    for activation in [DataType::Float, DataType::Float16] {
        let placement = Arc::new(Placement::default());
        let builder = Session::builder(environment()).unwrap();
        let mut builder = builder.with_operators(domain_with_placement(Arc::clone(&placement)).unwrap()).unwrap();
        let loaded = builder.commit_from_memory(&convolution(activation));
        let session = loaded.unwrap_or_else(|error| panic!("{activation:?}: {error}"));
        assert_eq!(session.outputs().len(), 2);
        assert_eq!(placement.cpu(), ["CausalConv"], "{activation:?}");
        assert!(placement.cuda().is_empty());
    }
}

/// Skipped, with a message, without a GPU.
#[test]
fn a_session_on_a_gpu_takes_the_kernel_of_each_type() {
    for activation in [DataType::Float, DataType::Float16, DataType::Bfloat16] {
        let placement = Arc::new(Placement::default());
        let builder = Session::builder(environment()).unwrap();
        let cuda = CUDA::default().with_tf32(false).build().error_on_failure();
        let builder = match builder.with_execution_providers([cuda]) {
            Ok(builder) => builder,
            Err(error) => return println!("skipped: {error}"),
        };
        let mut builder = builder.with_operators(domain_with_placement(Arc::clone(&placement)).unwrap()).unwrap();
        let loaded = builder.commit_from_memory(&convolution(activation));
        loaded.unwrap_or_else(|error| panic!("{activation:?}: {error}"));
        assert_eq!(placement.cuda(), ["CausalConv"], "{activation:?}");
        assert!(placement.cpu().is_empty());
    }
}

/// A session on the CPU takes the CPU's kernels, beside which those for GPUs are registered.
#[test]
fn kernels_for_gpus_do_not_disturb_a_session_on_the_cpu() {
    for model in ["densemamba-m2-both-gates", "mamba-m0-transformers", "denseretnet-m2-hub-layout-4-heads"] {
        let (_folder, bundle) = exported(model);
        for kind in [GraphKind::Parallel, GraphKind::Recurrent] {
            let file = OnnxFile::of_bundle(&bundle, kind).unwrap();
            let nodes = file.graph.node.iter().filter(|node| node.domain == DOMAIN);
            let nodes: BTreeSet<String> = nodes.map(|node| node.name.clone()).collect();
            assert!(!nodes.is_empty());
            let placement = Arc::new(Placement::default());
            let builder = Session::builder(environment()).unwrap();
            let mut builder = builder.with_operators(domain_with_placement(Arc::clone(&placement)).unwrap()).unwrap();
            let loaded = builder.commit_from_file(bundle.graph_path(kind).unwrap());
            loaded.unwrap_or_else(|error| panic!("{model}, {kind}: {error}"));
            assert_eq!(placement.cpu().into_iter().collect::<BTreeSet<_>>(), nodes, "{model}, {kind}");
            assert!(placement.cuda().is_empty());
        }
    }
}
