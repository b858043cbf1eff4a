//! Bundles on ONNX Runtime.
//!
//! The one design decision: a step binds nothing. A sequence's states lie in two sets of tensors; one binding reads the
//! first and writes the second, another the other way round, and they take turns. So a token costs no copy and no
//! lookup of names, and a call that fails has not touched the states it read.

mod library;
mod model;
mod probe;
mod roofline;
mod session;
mod states;
mod weights;

pub use library::library;
pub use probe::probe;
pub use roofline::time_product;
pub use session::{availability, load};
