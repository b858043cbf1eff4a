//! The kernels of the `ai.densessm` operators for CPUs ([`cpu`]) and for NVIDIA GPUs ([`cuda`]), runtime-independent.
//!
//! What an operator takes and gives is its [`Schema`](densessm_proto::operators::Schema). A [`KernelRegistration`] pairs
//! a schema with a function that makes a kernel; a call's operands are checked against the schema
//! ([`Signature::bind`]) before a kernel sees them, and a kernel refers to them by name. ONNX Runtime, tract and tests
//! call the same code, each with threads of its own ([`Pool`]). An invalid call is an [`Error`], never a panic.
//!
//! ```
//! use densessm_kernels::{Attributes, Level, Operand, ResultBuffer, Shape, SingleThreaded, cpu};
//!
//! struct NoAttributes;
//! impl Attributes for NoAttributes {
//!     fn integer(&self, _: &str) -> Option<i64> { None }
//!     fn float(&self, _: &str) -> Option<f32> { None }
//! }
//!
//! let registration = cpu::kernel("CausalConv").ok_or("no such operator")?;
//! let kernel = registration.prepare(&NoAttributes, &Level::best())?;
//! let shape = |sizes: &[usize]| Shape::new(sizes).ok_or("too many axes");
//! let operands = [
//!     Operand::F32(shape(&[1, 3, 1])?, &[1.0, 2.0, 3.0]), // u: [batch, time, channels]
//!     Operand::F32(shape(&[2, 1])?, &[0.5, 0.25]),        // weight: [taps, channels]
//!     Operand::F32(shape(&[1, 1, 1])?, &[0.0]),           // state: [batch, channels, taps - 1]
//! ];
//! let (mut y, mut present) = ([0.0; 3], [0.0; 1]);
//! let mut results = [ResultBuffer::F32(&mut y), ResultBuffer::F32(&mut present)];
//! kernel.run(&operands, &mut results, &SingleThreaded)?;
//! assert_eq!(present, [3.0]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod attributes;
mod bound;
pub mod cpu;
pub mod cuda;
mod error;
mod kernel;
mod operand;
mod pool;
mod registration;
mod signature;

pub use attributes::{AttributeValues, Attributes};
pub use bound::BoundCall;
pub use cpu::{Function, Level};
pub use error::Error;
pub use kernel::Kernel;
pub use operand::{Described, Operand, ResultBuffer, Shape};
pub use pool::{Pool, SingleThreaded};
pub use registration::{KernelRegistration, PreparedKernel};
pub use signature::Signature;
