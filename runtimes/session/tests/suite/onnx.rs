//! Reading the graphs of a bundle.

use crate::{MAMBA, RETNET, exported, exported_with};
use densessm_bundle::ExportOptions;
use densessm_proto::{
    GraphKind, Precision,
    onnx::{AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, tensor_proto::DataLocation},
};
use densessm_session::{
    Bundle, Error,
    onnx::{OnnxFile, Widened, read_all},
};
use prost::Message;
use std::fs;

/// What reading the recurrent graph returns after a change of the model.
fn read(bundle: &Bundle, change: impl FnOnce(&mut ModelProto)) -> Result<OnnxFile, Error> {
    let path = bundle.graph_path(GraphKind::Recurrent).unwrap();
    let original = fs::read(&path).unwrap();
    let mut model = ModelProto::decode(&*original).unwrap();
    change(&mut model);
    fs::write(&path, model.encode_to_vec()).unwrap();
    let file = OnnxFile::of_bundle(bundle, GraphKind::Recurrent);
    fs::write(&path, original).unwrap();
    file
}

/// A tensor whose data is in a file of that name.
fn external(location: &str) -> TensorProto {
    let mut tensor =
        TensorProto { name: "w".to_owned(), data_location: DataLocation::External.into(), ..TensorProto::default() };
    tensor
        .external_data
        .push(densessm_proto::onnx::StringStringEntryProto { key: "location".to_owned(), value: location.to_owned() });
    tensor
}

fn node(attribute: AttributeProto) -> NodeProto {
    NodeProto { attribute: vec![attribute], ..NodeProto::default() }
}

fn outer(model: &mut ModelProto) -> &mut GraphProto {
    model.graph.as_mut().unwrap()
}

#[test]
fn a_graph_is_read_and_put_together_again() {
    let (_folder, bundle) = exported(MAMBA);
    for kind in [GraphKind::Parallel, GraphKind::Recurrent] {
        let bytes = fs::read(bundle.graph_path(kind).unwrap()).unwrap();
        let file = OnnxFile::of_bundle(&bundle, kind).unwrap();
        assert_eq!(file.bytes, bytes.len() as u64);
        assert_eq!(file.into_model(), ModelProto::decode(&*bytes).unwrap());
    }
}

#[test]
fn data_is_beside_the_graph_or_refused() {
    let (_folder, bundle) = exported(MAMBA);
    assert!(read(&bundle, |model| outer(model).initializer.push(external("other.data"))).is_ok());
    for elsewhere in ["/etc/x.data", "../x.data", "a/x.data", "./x.data", "a\\x.data", "weights.bin", "", ".."] {
        let error = read(&bundle, |model| outer(model).initializer.push(external(elsewhere))).unwrap_err().to_string();
        let expected = "tensor `w`: expected its data in a file beside the graph that ends in .data, got";
        assert!(error.contains(&format!("{expected} `{elsewhere}`")), "{error}");
    }
}

#[test]
fn data_of_attributes_sub_graphs_and_functions_is_checked_too() {
    let (_folder, bundle) = exported(MAMBA);
    let tensor = || AttributeProto { t: Some(external("../x.data")), ..AttributeProto::default() };
    let inner = GraphProto { initializer: vec![external("../x.data")], ..GraphProto::default() };
    let sub_graph = AttributeProto { g: Some(inner), ..AttributeProto::default() };
    let function = FunctionProto { node: vec![node(tensor())], ..FunctionProto::default() };
    for error in [
        read(&bundle, |model| outer(model).node.push(node(tensor()))),
        read(&bundle, |model| outer(model).node.push(node(sub_graph))),
        read(&bundle, |model| model.functions.push(function)),
    ] {
        assert!(error.unwrap_err().to_string().contains("tensor `w`"));
    }
}

#[test]
fn what_is_not_a_graph_is_refused() {
    let (_folder, bundle) = exported(MAMBA);
    let error = read(&bundle, |model| model.graph = None).unwrap_err().to_string();
    assert!(error.ends_with("not an ONNX model: it contains no graph"), "{error}");
    let path = bundle.graph_path(GraphKind::Recurrent).unwrap();
    fs::write(&path, "not a model").unwrap();
    let error = OnnxFile::read(&path).unwrap_err().to_string();
    assert!(error.starts_with(&format!("{}: not an ONNX model", path.display())), "{error}");
}

#[test]
fn inner_values_become_outputs_and_unknown_names_are_left_out() {
    let (_folder, bundle) = exported(MAMBA);
    let mut file = OnnxFile::of_bundle(&bundle, GraphKind::Recurrent).unwrap();
    let outputs = file.graph.output.len();
    let inner = file.graph.node[0].output[0].clone();
    let names = [inner.clone(), "logits".to_owned(), "no/such/value".to_owned()];
    assert_eq!(file.expose(&names), names[..1]);
    assert_eq!(file.graph.output.len(), outputs + 1);
    assert_eq!(file.graph.output[outputs].name, inner);
}

/// Reads widened matrices one by one and all at once, which gives the same.
fn numbers(bundle: &Bundle, widened: &[Widened]) -> Vec<Vec<f32>> {
    let mut one_by_one: Vec<Vec<f32>> = widened.iter().map(|matrix| vec![0.0; matrix.elements()]).collect();
    let mut at_once = one_by_one.clone();
    for (matrix, out) in widened.iter().zip(&mut one_by_one) {
        matrix.read(bundle, out).unwrap();
    }
    read_all(bundle, widened.iter().zip(at_once.iter_mut().map(Vec::as_mut_slice))).unwrap();
    assert_eq!(one_by_one, at_once);
    one_by_one
}

/// The data of an fp32 initializer.
fn fp32(bundle: &Bundle, tensor: &TensorProto) -> Vec<f32> {
    let number = |key: &str| {
        let entry = tensor.external_data.iter().find(|entry| entry.key == key).unwrap();
        entry.value.parse::<usize>().unwrap()
    };
    let data = fs::read(bundle.dir().join("model.onnx.data")).unwrap();
    let bytes = &data[number("offset")..][..number("length")];
    bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
}

#[test]
fn widened_matrices_are_the_rounded_ones_of_the_fp32_bundle() {
    for (model, precision, unit) in
        [(MAMBA, Precision::Fp16, 2_f32.powi(-11)), (RETNET, Precision::Bf16, 2_f32.powi(-8))]
    {
        let (_folder, bundle) = exported_with(model, &ExportOptions::default().with_precision(precision));
        let (_exact_folder, exact) = exported(model);
        let mut names = Vec::new();
        for kind in [GraphKind::Parallel, GraphKind::Recurrent] {
            let mut file = OnnxFile::of_bundle(&bundle, kind).unwrap();
            let widened = file.widen(false).unwrap();
            // What products multiply with has the names that an fp32 graph has not, the same shapes and the same order.
            let exact_graph = OnnxFile::of_bundle(&exact, kind).unwrap().graph;
            for (matrix, numbers) in widened.iter().zip(numbers(&bundle, &widened)) {
                let source = matrix.name.strip_suffix("/transposed").unwrap();
                let original = exact_graph.initializer.iter().find(|tensor| tensor.name == source).unwrap();
                let mut expected = fp32(&exact, original);
                let shape = matrix.shape().map(|size| size as i64);
                if original.dims != shape {
                    // The table of a tied head, which the fp32 graph multiplies with as it is.
                    let [rows, columns] = matrix.shape();
                    assert_eq!(original.dims, [shape[1], shape[0]], "{source}");
                    expected = (0..rows * columns).map(|i| expected[i % columns * rows + i / columns]).collect();
                }
                for (got, expected) in numbers.iter().zip(&expected) {
                    let subnormal = 2_f32.powi(-25);
                    assert!(
                        (got - expected).abs() <= (unit * expected.abs()).max(subnormal),
                        "{source}: {got}, {expected}"
                    );
                }
            }
            names.push(widened.iter().map(|matrix| matrix.name.clone()).collect::<Vec<_>>());
            // No cast of a weight is left but that of the embedding's rows, and every value has a source.
            let casts = file.graph.node.iter().filter(|node| node.op_type == "Transpose").count();
            assert_eq!(casts, 0, "{model}");
            let placeholders = widened.iter().map(Widened::placeholder);
            let known: std::collections::HashSet<String> = file
                .graph
                .initializer
                .iter()
                .map(|tensor| tensor.name.clone())
                .chain(placeholders.map(|tensor| tensor.name))
                .chain(file.graph.input.iter().map(|input| input.name.clone()))
                .chain(file.graph.node.iter().flat_map(|node| node.output.clone()))
                .collect();
            for name in file.graph.node.iter().flat_map(|node| &node.input).filter(|name| !name.is_empty()) {
                assert!(known.contains(name), "{model}: `{name}` has no source");
            }
        }
        assert_eq!(names[0], names[1], "{model}: both graphs read the same matrices");
    }
}

#[test]
fn tables_are_widened_on_request_and_fp32_graphs_stay_as_they_are() {
    let (_folder, bundle) = exported_with(RETNET, &ExportOptions::default().with_precision(Precision::Bf16));
    let read = |tables: bool| {
        let mut file = OnnxFile::of_bundle(&bundle, GraphKind::Recurrent).unwrap();
        let widened = file.widen(tables).unwrap();
        (file, widened)
    };
    let ((without, some), (with, all)) = (read(false), read(true));
    assert_eq!(all.len(), some.len() + 1);
    let table = all.iter().find(|matrix| matrix.name == "model.embed_tokens.weight/widened").unwrap();
    let architecture = bundle.architecture();
    assert_eq!(table.shape(), [architecture.vocab_size(), architecture.hidden_size()]);
    // The rows keep the name that the cast ones have.
    let results =
        |file: &OnnxFile| -> Vec<String> { file.graph.node.iter().flat_map(|node| node.output.clone()).collect() };
    assert!(results(&with).iter().all(|name| results(&without).contains(name)));
    assert_eq!(results(&with).len() + 1, results(&without).len());

    let (_folder, exact) = exported(RETNET);
    let mut file = OnnxFile::of_bundle(&exact, GraphKind::Recurrent).unwrap();
    assert!(file.widen(true).unwrap().is_empty());
    assert_eq!(file.into_model(), OnnxFile::of_bundle(&exact, GraphKind::Recurrent).unwrap().into_model());
}

#[test]
fn a_matrix_beyond_its_file_is_an_error() {
    let (_folder, bundle) = exported_with(MAMBA, &ExportOptions::default().with_precision(Precision::Fp16));
    for (key, value) in [("offset", "99999999999"), ("offset", "x"), ("location", "other.data")] {
        let mut file = OnnxFile::of_bundle(&bundle, GraphKind::Recurrent).unwrap();
        for entry in file.graph.initializer.iter_mut().flat_map(|tensor| &mut tensor.external_data) {
            if entry.key == key {
                entry.value = value.to_owned();
            }
        }
        let widened = file.widen(false).unwrap();
        let mut out = vec![0.0; widened[0].elements()];
        assert!(widened[0].read(&bundle, &mut out).is_err(), "{key} {value}");
    }
}
