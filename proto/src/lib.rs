//! The contract between exporters and runtimes: model dimensions, state layout, operators, manifest and, with the feature
//! `onnx`, ONNX's protobuf types.
//!
//! Exporters write by these definitions and runtimes read by them; neither depends on the other. A fact that both sides
//! need (a state's name, a dimension, a file name) is written here once and nowhere else.

#![forbid(unsafe_code)]

mod architecture;
mod dtype;
pub mod families;
pub mod manifest;
#[cfg(feature = "onnx")]
pub mod onnx;
pub mod operators;
mod precision;
pub mod probes;
mod shapes;
pub mod states;
pub mod tolerance;

pub use architecture::Architecture;
pub use dtype::DType;
pub use families::{DenseMamba, DenseRetNet, FalconMamba, Family, Projection};
pub use manifest::{Dimension, FileEntry, GraphEntry, GraphKind, LogitsMode, Lowering, Manifest, TensorEntry};
pub use precision::Precision;
pub use probes::{Probe, ProbeLayout, probes};
pub use shapes::{ParseSizeRangeError, ShapeProfile, SizeRange};
pub use states::StateTensor;
pub use tolerance::{OutOfTolerance, Tolerance, ToleranceClass};
