//! Looking into a graph: values between its nodes as outputs.

use crate::{Error, HostTensor};
use densessm_proto::onnx::{GraphProto, ValueInfoProto};
use std::collections::{BTreeMap, HashSet};

/// A graph whose inner values can be seen.
pub trait Probe {
    /// Runs the graph on tensors by name; absent ones are completed as [`Model::run`](crate::Model::run) does. Returns
    /// its outputs and the values asked for, by name.
    ///
    /// # Errors
    /// When an input is wrong, or the runtime fails.
    fn run(&mut self, inputs: BTreeMap<String, HostTensor>) -> Result<BTreeMap<String, HostTensor>, Error>;
}

/// For runtimes: makes outputs of those values that the graph has, and returns their names in order.
pub fn expose(graph: &mut GraphProto, names: &[String]) -> Vec<String> {
    let made: HashSet<&str> = graph.node.iter().flat_map(|node| &node.output).map(String::as_str).collect();
    let outputs: HashSet<&str> = graph.output.iter().map(|output| output.name.as_str()).collect();
    let found: Vec<String> =
        names.iter().filter(|name| made.contains(name.as_str()) && !outputs.contains(name.as_str())).cloned().collect();
    // Their types are known from the value infos where there are any; else a runtime infers them.
    let infos: Vec<ValueInfoProto> = found
        .iter()
        .map(|name| {
            let known = graph.value_info.iter().find(|info| info.name == *name);
            known.cloned().unwrap_or_else(|| ValueInfoProto { name: name.clone(), ..ValueInfoProto::default() })
        })
        .collect();
    graph.output.extend(infos);
    found
}
