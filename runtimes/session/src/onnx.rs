//! The graphs of a bundle as ONNX messages, for the crates that implement runtimes.
//!
//! This module is behind the cargo feature `onnx`: its functions take and return protobuf types, which applications do
//! not need.

mod widen;

pub use widen::{Widened, read_all};

use crate::{Bundle, Error};
use densessm_proto::{
    GraphEntry, GraphKind,
    onnx::{AttributeProto, GraphProto, ModelProto, TensorProto, ValueInfoProto, tensor_proto::DataLocation},
};
use prost::Message;
use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
};

/// A model that was read from a file and contains a graph.
#[derive(Clone, Debug)]
pub struct OnnxFile {
    /// The file.
    pub path: PathBuf,
    /// Size of the file in bytes.
    pub bytes: u64,
    /// The model without its graph.
    pub model: ModelProto,
    /// The model's graph.
    pub graph: GraphProto,
}

impl OnnxFile {
    /// Reads an ONNX file.
    ///
    /// # Errors
    /// When the file cannot be read, is not an ONNX model, or contains no graph.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let bytes = fs::read(path).map_err(|error| Error::Io { path: path.to_owned(), error })?;
        let broken = |problem: String| Error::Bundle { path: path.to_owned(), problem };
        let mut model = ModelProto::decode(&*bytes).map_err(|error| broken(format!("not an ONNX model: {error}")))?;
        let graph = model.graph.take().ok_or_else(|| broken("not an ONNX model: it contains no graph".to_owned()))?;
        Ok(Self { path: path.to_owned(), bytes: bytes.len() as u64, model, graph })
    }

    /// Reads a graph of a bundle and checks that all of its weights are inside it or in the files beside it that
    /// [`Bundle::data_path`] allows.
    ///
    /// # Errors
    /// As [`OnnxFile::read`], and when the bundle does not contain the graph or a tensor's data is elsewhere.
    pub fn of_bundle(bundle: &Bundle, kind: GraphKind) -> Result<Self, Error> {
        Self::read_checked(bundle, &bundle.graph_path(kind)?)
    }

    /// As [`OnnxFile::of_bundle`], for a graph that the bundle's manifest lists.
    ///
    /// # Errors
    /// As [`OnnxFile::of_bundle`].
    pub fn of_entry(bundle: &Bundle, entry: &GraphEntry) -> Result<Self, Error> {
        Self::read_checked(bundle, &bundle.entry_path(entry)?)
    }

    fn read_checked(bundle: &Bundle, path: &Path) -> Result<Self, Error> {
        let file = Self::read(path)?;
        let functions = file.model.functions.iter().flat_map(|function| &function.node);
        let outside = check_graph(bundle, &file.graph)
            .and_then(|()| functions.flat_map(|node| &node.attribute).try_for_each(|a| check_attribute(bundle, a)));
        outside.map_err(|problem| file.broken(problem))?;
        Ok(file)
    }

    /// Returns the model with its graph.
    pub fn into_model(self) -> ModelProto {
        ModelProto { graph: Some(self.graph), ..self.model }
    }

    /// Returns an error of this file.
    pub fn broken(&self, problem: impl Into<String>) -> Error {
        Error::Bundle { path: self.path.clone(), problem: problem.into() }
    }

    /// Makes those values of `names` that a node of the graph produces outputs of the graph, and returns their names in
    /// order.
    pub fn expose(&mut self, names: &[String]) -> Vec<String> {
        let graph = &mut self.graph;
        let made: HashSet<&str> = graph.node.iter().flat_map(|node| &node.output).map(String::as_str).collect();
        let outputs: HashSet<&str> = graph.output.iter().map(|output| output.name.as_str()).collect();
        let inner = |name: &&String| made.contains(name.as_str()) && !outputs.contains(name.as_str());
        let found: Vec<String> = names.iter().filter(inner).cloned().collect();
        // Their types are known from the value infos where there are any; otherwise the runtime infers them.
        let info = |name: &String| {
            let known = graph.value_info.iter().find(|info| info.name == *name);
            known.cloned().unwrap_or_else(|| ValueInfoProto { name: name.clone(), ..ValueInfoProto::default() })
        };
        let infos: Vec<ValueInfoProto> = found.iter().map(info).collect();
        graph.output.extend(infos);
        found
    }
}

/// Checks every tensor of a graph and its sub-graphs; the error is a message that names the first one elsewhere.
fn check_graph(bundle: &Bundle, graph: &GraphProto) -> Result<(), String> {
    graph.initializer.iter().try_for_each(|tensor| check_tensor(bundle, tensor))?;
    graph.node.iter().flat_map(|node| &node.attribute).try_for_each(|attribute| check_attribute(bundle, attribute))
}

fn check_attribute(bundle: &Bundle, attribute: &AttributeProto) -> Result<(), String> {
    attribute.t.iter().try_for_each(|tensor| check_tensor(bundle, tensor))?;
    attribute.g.iter().try_for_each(|graph| check_graph(bundle, graph))
}

fn check_tensor(bundle: &Bundle, tensor: &TensorProto) -> Result<(), String> {
    if tensor.data_location != i32::from(DataLocation::External) {
        return Ok(());
    }
    let location = tensor.external_data.iter().find(|entry| entry.key == "location");
    let location = location.map_or("", |entry| entry.value.as_str());
    bundle.data_path(location).map(drop).map_err(|_| {
        let expected = "expected its data in a file beside the graph that ends in .data";
        format!("tensor `{}`: {expected}, got `{location}`", tensor.name)
    })
}
