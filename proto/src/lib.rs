//! What a bundle is, without any logic: ONNX's protobuf types, the manifest, the state layout and the operators' names.
//!
//! Exporters write by these definitions and runtimes read by them; neither knows the other. A fact that both sides
//! need (a state's name, a dimension, a file name) is written here once and nowhere else.

#![forbid(unsafe_code)]

pub mod architecture;
pub mod manifest;
pub mod operators;
pub mod states;

pub use architecture::{Architecture, DenseMamba, DenseRetNet, Projection};
pub use manifest::{
    Dimension, ElementType, FileEntry, GraphEntry, GraphKind, Logits, Lowering, Manifest, Precision, TensorEntry,
};
pub use states::StateTensor;

/// ONNX's file format, from `proto/onnx.proto`.
#[allow(clippy::doc_markdown)]
pub mod onnx {
    include!(concat!(env!("OUT_DIR"), "/onnx.rs"));
}
