//! `densessm.json`: the contents of a bundle and the signatures of its graphs.

use crate::{Architecture, DType, Precision};
use serde::{Deserialize, Serialize};

/// File name of the manifest.
pub const MANIFEST_FILE: &str = "densessm.json";
/// File name of the weights.
pub const WEIGHTS_FILE: &str = "model.onnx.data";
/// The manifest format that this version writes, and the newest that it reads.
///
/// It changes whenever an older reader would misunderstand a manifest. A reader keeps reading every older format; one small
/// bundle of each format stands in `tests/fixtures`.
pub const FORMAT_VERSION: u32 = 2;

/// The manifest of a bundle.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of the manifest's own format.
    pub format_version: u32,
    /// Version of the exporter.
    pub tool_version: String,
    /// The model and its dimensions.
    pub architecture: Architecture,
    /// How the matrices are stored.
    pub precision: Precision,
    /// Version of ONNX's default operator set.
    pub opset: i64,
    /// How the custom operators are written.
    pub lowering: Lowering,
    /// Which logits the parallel graph returns.
    pub logits: LogitsMode,
    /// The graphs: those that every runtime can run, and in half precision those for GPUs.
    pub graphs: Vec<GraphEntry>,
    /// Bytes of all carried states of one sequence.
    pub state_bytes_per_sequence: u64,
    /// Every other file of the bundle.
    pub files: Vec<FileEntry>,
}

impl Manifest {
    /// The entry of the graph of this kind that every runtime can run, if the bundle contains it: its activations are
    /// fp32.
    pub fn graph(&self, kind: GraphKind) -> Option<&GraphEntry> {
        self.graph_with(kind, DType::F32)
    }

    /// The entry of the graph of this kind whose activations have this type, if the bundle contains it.
    pub fn graph_with(&self, kind: GraphKind, activations: DType) -> Option<&GraphEntry> {
        self.graphs.iter().find(|graph| graph.kind == kind && graph.activations == activations && !graph.fused)
    }

    /// The entry of the step graph with these activations that is one fused operator, if the bundle contains it.
    pub fn fused_step(&self, activations: DType) -> Option<&GraphEntry> {
        self.graphs.iter().find(|graph| graph.fused && graph.activations == activations)
    }
}

/// Which of the two graphs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GraphKind {
    /// Prefill: many tokens in one call.
    Parallel,
    /// Stepping: one token per call.
    Recurrent,
}

/// File name of the step graph that is one fused operator, with activations of this type: `step.fp16.onnx`.
pub fn fused_step_file(activations: DType) -> String {
    format!("step.{activations}.onnx")
}

impl GraphKind {
    /// File name of the graph in a bundle.
    pub fn file(self) -> &'static str {
        match self {
            Self::Parallel => "parallel.onnx",
            Self::Recurrent => "recurrent.onnx",
        }
    }

    /// File name of the graph whose activations have this type: `parallel.onnx` with fp32, else `parallel.fp16.onnx`.
    pub fn file_with(self, activations: DType) -> String {
        match activations {
            DType::F32 => self.file().to_owned(),
            half => format!("{}.{half}.onnx", self.name()),
        }
    }

    /// The graph's name as commands take and print it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Parallel => "parallel",
            Self::Recurrent => "recurrent",
        }
    }
}

impl std::fmt::Display for GraphKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// How the custom operators are written into the graphs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lowering {
    /// As nodes of the domain `ai.densessm`, each with a local function of standard operators as its fallback.
    Function,
    /// As standard operators only.
    Inline,
}

impl std::fmt::Display for Lowering {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Function => "function",
            Self::Inline => "inline",
        })
    }
}

/// Which logits the parallel graph returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogitsMode {
    /// Those of each row's last valid token.
    Last,
    /// Those of every token.
    All,
}

/// One graph of a bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GraphEntry {
    /// Which graph it is.
    pub kind: GraphKind,
    /// Its file.
    pub file: String,
    /// Element type of what its products take and return. Inputs and outputs of the graph do not depend on it.
    #[serde(default = "fp32")]
    pub activations: DType,
    /// Whether the graph is a single operator over all weights and states, which only some runtimes have a kernel for.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fused: bool,
    /// Its inputs, in order.
    pub inputs: Vec<TensorEntry>,
    /// Its outputs, in order.
    pub outputs: Vec<TensorEntry>,
}

/// The activations of every graph before format 2.
fn fp32() -> DType {
    DType::F32
}

/// An input or output of a graph.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorEntry {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub dtype: DType,
    /// Its shape.
    pub shape: Vec<Dimension>,
}

/// One dimension of a shape.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Dimension {
    /// A static size.
    Size(usize),
    /// A named size that the caller chooses.
    Symbol(String),
}

/// A file of a bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Its name.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// SHA-256 of its content, in lower-case hexadecimal digits.
    pub sha256: String,
}
