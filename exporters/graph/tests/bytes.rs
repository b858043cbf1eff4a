//! The bytes of a finished graph, with weights inside and beside it.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use densessm_graph::{DType, Error, ExternalData, Graph, Initializer, Lowering, Model, Prepare, TensorType};
use densessm_proto::onnx::{ModelProto, TensorProto, tensor_proto::DataLocation};
use prost::Message;
use std::{cell::RefCell, collections::BTreeMap};

/// Three weights: as it is, joined and transposed, prepared element by element.
fn model() -> Model {
    let graph = Graph::new("test", 18, Lowering::Inline).unwrap();
    let x = graph.input("x", TensorType::new(DType::F32, [5_usize, 3]));
    let p = graph.root();
    let y = x * p.weight("scale", [3]);
    let y = p.scope("layer", |p| y.matmul(p.weights_t(&[("a", [2, 3]), ("b", [1, 3])])));
    graph.output("y", y + p.weight_as("A_log", [5, 3], Prepare::NegExp));
    graph.finish().unwrap()
}

fn initializers(bytes: &[u8]) -> BTreeMap<String, TensorProto> {
    let graph = ModelProto::decode(bytes).unwrap().graph.unwrap();
    graph.initializer.into_iter().map(|tensor| (tensor.name.clone(), tensor)).collect()
}

fn floats(tensor: &TensorProto) -> Vec<f32> {
    tensor.raw_data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

#[test]
fn weights_in_memory_are_prepared_and_embedded() {
    let tensors: BTreeMap<&str, Vec<f32>> = BTreeMap::from([
        ("scale", vec![1.0, 2.0, 3.0]),
        ("layer.a", vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
        ("layer.b", vec![7.0, 8.0, 9.0]),
        ("A_log", vec![0.0; 15]),
    ]);
    let asked = RefCell::new(Vec::new());
    let bytes = model().to_bytes(|part| {
        asked.borrow_mut().push(part.name.clone());
        tensors.get(part.name.as_str())
    });
    assert_eq!(asked.into_inner(), ["scale", "layer.a", "layer.b", "A_log"], "each once, in order");
    let tensors = initializers(&bytes.unwrap());
    assert_eq!(floats(&tensors["scale"]), [1.0, 2.0, 3.0]);
    assert_eq!(tensors["layer.a+b"].dims, [3, 3]);
    assert_eq!(floats(&tensors["layer.a+b"]), [1.0, 4.0, 7.0, 2.0, 5.0, 8.0, 3.0, 6.0, 9.0]);
    assert_eq!(floats(&tensors["A_log"]), [-1.0; 15]);
}

#[test]
fn weights_beside_the_graph_are_pointed_at() {
    let model = model();
    let mut end = 0;
    let bytes = model.to_bytes_external(|initializer: &Initializer| {
        end += 100;
        ExternalData::new("model.data", end, initializer.bytes() as u64)
    });
    let tensors = initializers(&bytes);
    let tensor = &tensors["layer.a+b"];
    let entries: Vec<(&str, &str)> = tensor.external_data.iter().map(|e| (e.key.as_str(), e.value.as_str())).collect();
    assert_eq!(entries, [("location", "model.data"), ("offset", "200"), ("length", "36")]);
    assert_eq!((tensor.data_location, tensor.raw_data.len()), (i32::from(DataLocation::External), 0));
}

#[test]
fn what_is_wrong_with_weights_in_memory_is_said_at_their_declaration() {
    type Values = fn(&str) -> Option<Vec<f32>>;
    let failed = |values: Values| -> Error {
        let graph = Graph::new("test", 18, Lowering::Inline).unwrap();
        let x = graph.input("x", TensorType::new(DType::F16, [4_usize, 4]));
        graph.output("y", x.matmul(graph.root().with_weights_in(DType::F16).weight_t("w", [4, 4])));
        graph.finish().unwrap().to_bytes(|part| values(&part.name)).unwrap_err()
    };
    let line = line!() - 3;
    let cases: [(Values, &str); 3] = [
        (|_| None, "there are no values for tensor `w`"),
        (|_| Some(vec![0.0; 15]), "tensor `w`: expected 16 elements, got 15"),
        (|_| Some(vec![1e9; 16]), "element 0 is 1000000000, which is too large for fp16; store it in fp32 or bf16"),
    ];
    for (values, problem) in cases {
        let error = failed(values);
        assert_eq!((error.what.as_str(), error.problem.as_str()), ("weight `w`", problem));
        assert_eq!((error.file.as_str(), error.line), (file!(), line));
    }
}

#[test]
fn a_file_beyond_the_formats_limit_is_refused_before_a_weight_is_read() {
    let graph = Graph::new("large", 18, Lowering::Inline).unwrap();
    let x = graph.input("x", TensorType::new(DType::F32, [1_usize, 1 << 15]));
    graph.output("y", x.matmul(graph.root().weight("w", [1 << 15, 1 << 14])));
    let (line, model) = (line!(), graph.finish().unwrap());
    let error = model.to_bytes(|_| -> Option<Vec<f32>> { panic!("asked for a weight") }).unwrap_err();
    assert_eq!(error.what, "graph `large`");
    assert!(error.problem.starts_with("would be a file of 2147483648 bytes, at most 2 GiB"), "{error}");
    assert_eq!((error.file.as_str(), error.line), (file!(), line));
}

#[test]
fn finished_models_and_errors_cross_threads() {
    fn shared<T: Send + Sync + 'static>() {}
    shared::<Model>();
    shared::<Error>();
}
