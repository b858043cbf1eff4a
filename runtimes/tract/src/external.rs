//! Where weights may lie: in a file beside the graph whose name ends in `.data`, and nowhere else.

use densessm_proto::onnx::{GraphProto, TensorProto, tensor_proto::DataLocation};
use std::path::{Component, Path};

/// Checks every tensor of a graph and its sub-graphs.
///
/// # Errors
/// In words, naming the first tensor that lies elsewhere.
pub(crate) fn check(graph: &GraphProto) -> Result<(), String> {
    graph.initializer.iter().try_for_each(tensor)?;
    for attribute in graph.node.iter().flat_map(|node| &node.attribute) {
        attribute.t.as_ref().map_or(Ok(()), tensor)?;
        attribute.g.as_ref().map_or(Ok(()), check)?;
    }
    Ok(())
}

fn tensor(tensor: &TensorProto) -> Result<(), String> {
    if tensor.data_location != i32::from(DataLocation::External) {
        return Ok(());
    }
    let location = tensor.external_data.iter().find(|entry| entry.key == "location").map(|entry| entry.value.as_str());
    match location {
        Some(name) if beside(name) => Ok(()),
        other => Err(format!(
            "tensor `{}`: expected its data in a file beside the graph that ends in .data, got `{}`",
            tensor.name,
            other.unwrap_or_default()
        )),
    }
}

fn beside(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    let plain = matches!((parts.next(), parts.next()), (Some(Component::Normal(only)), None) if only == name);
    plain && name.ends_with(".data") && !name.contains('\\')
}

#[cfg(test)]
mod tests {
    use super::*;
    use densessm_proto::onnx::{AttributeProto, NodeProto, StringStringEntryProto};

    fn weight(location: &str) -> TensorProto {
        let location = StringStringEntryProto { key: "location".to_owned(), value: location.to_owned() };
        TensorProto {
            name: "w".to_owned(),
            data_location: DataLocation::External.into(),
            external_data: vec![location],
            ..TensorProto::default()
        }
    }

    fn graph(location: &str) -> GraphProto {
        GraphProto { initializer: vec![weight(location)], ..GraphProto::default() }
    }

    #[test]
    fn data_lies_beside_the_graph_or_is_refused() {
        assert_eq!(check(&graph("model.onnx.data")), Ok(()));
        for elsewhere in ["/etc/x.data", "../x.data", "a/x.data", "./x.data", "a\\x.data", "weights.bin", "", ".."] {
            assert!(check(&graph(elsewhere)).is_err(), "{elsewhere}");
        }
    }

    #[test]
    fn data_of_sub_graphs_and_of_attributes_is_looked_at_too() {
        for hidden in [
            AttributeProto { g: Some(graph("../x.data")), ..AttributeProto::default() },
            AttributeProto { t: Some(weight("../x.data")), ..AttributeProto::default() },
        ] {
            let node = NodeProto { attribute: vec![hidden], ..NodeProto::default() };
            let outer = GraphProto { node: vec![node], ..GraphProto::default() };
            assert!(check(&outer).is_err_and(|problem| problem.contains("tensor `w`")));
        }
    }
}
