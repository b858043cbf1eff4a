//! The kernels of the `ai.densessm` operators: pure Rust on slices of fp32.
//!
//! The one design decision: a kernel knows no runtime. It takes [`Operand`]s, checks their shapes against each other,
//! and shares its work out over the [`Pool`] it is given; so ONNX Runtime, tract and a test call the same code. SIMD
//! is chosen when the kernel is made ([`Level`]). What a call is given wrongly is an [`Error`], never a panic.

mod causal_conv;
pub mod cuda;
mod dense_norm;
mod error;
mod kernel;
mod lanes;
mod operands;
mod parts;
mod pool;
mod product;
mod readout;
mod retention;
mod retention_step;
mod selective_scan;
mod selective_step;
mod simd;

pub use error::Error;
pub use kernel::{Attributes, Definition, Kernel, OPERATORS};
pub use lanes::Function;
pub use operands::{Arity, Element, Operand, Shape, Slot};
pub use pool::{Pool, SingleThreaded};
pub use simd::Level;
