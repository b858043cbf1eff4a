//! Reading the graphs of a bundle.

use crate::{MAMBA, exported};
use densessm_proto::{
    GraphKind,
    onnx::{AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, tensor_proto::DataLocation},
};
use densessm_session::{Bundle, Error, onnx::OnnxFile};
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
