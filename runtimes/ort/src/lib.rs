//! ONNX Runtime as a runtime of bundles.
//!
//! The states of a batch are kept in two sets of tensors on the device. One binding reads the first set and writes the
//! second, another does the reverse, and steps alternate between them. So a step copies no state and looks up no names,
//! and a call that fails has not touched the states that it read. Sequences join and leave a batch within that memory.

mod binding;
mod device;
mod error;
mod gpu;
mod gpu_weights;
mod graph;
mod library;
mod memory;
mod model;
mod operators;
mod probe;
mod roofline;
mod runtime;
mod session;
mod states;
mod step;
mod tensorrt;
mod weights;

pub use library::library;
pub use runtime::OrtRuntime;
pub use step::take_capture_problem;
pub use tensorrt::disable_tf32;
