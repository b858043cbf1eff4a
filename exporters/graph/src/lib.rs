//! An ONNX graph builder. A graph is written the way its equations are, and every operation is checked at once.
//!
//! ```
//! use densessm_graph::{DType, Dim, Graph, Lowering, Scope, TensorType, Value};
//!
//! /// `y = x Wᵀ + b`: `[.., d_in] -> [.., d_out]`.
//! fn linear<'g>(p: Scope<'g>, name: &str, x: Value<'g>, d_out: usize) -> Value<'g> {
//!     p.scope(name, |p| {
//!         let w = p.weight_t("weight", [d_out, x.size(-1)]); // [d_out, d_in] in the checkpoint, transposed here
//!         x.matmul(w) + p.weight("bias", [d_out])
//!     })
//! }
//!
//! let graph = Graph::new("example", 18, Lowering::Inline)?;
//! let x = graph.input("x", TensorType::new(DType::F32, ["batch".into(), Dim::from(8_usize)]));
//! let [v, gate] = linear(graph.root(), "to_hidden.0", x, 32).silu().split(-1);
//! graph.output("y", v * gate * 0.5);
//! let model = graph.finish()?;
//! let onnx: Vec<u8> = model.to_bytes(|tensor| Some(vec![0.1; tensor.elements()]))?; // a runtime can load these
//! # assert!(onnx.len() > 4 * (32 * 8 + 32));
//! # Ok::<(), densessm_graph::Error>(())
//! ```
//!
//! # Values, scopes and weights
//! A [`Graph`] owns everything; a [`Value`] is a tensor in it and a [`Scope`] a module of the model. Both are `Copy`.
//! Operations are methods and operators of values, and none returns a `Result`. Sizes are numbers or symbols ([`Dim`]):
//! `[batch, sequence + 3, 64]` is a shape, and shapes are compared symbolically.
//!
//! A scope gives nodes their names, and weights are declared in it under the checkpoint's names and with the
//! checkpoint's shapes. [`Prepare`] says what is done to a tensor once, at export, and [`Storage`] how the result is
//! stored: in fp32, in another floating-point type, or quantized, in which case one tensor becomes several
//! [`Initializer`]s.
//!
//! # Element types
//! Every operation requires equal element types of its operands, and an error names both. A number in `x * 0.5` is
//! rounded to the type of `x`, so functions such as [`softplus`](Value::softplus) work in every floating-point type.
//! [`Value::cast`] converts.
//!
//! # Errors
//! The first error is kept with the line that made it, whatever depends on it is skipped, and [`Graph::finish`] reports
//! it: ``node `mixer/Add`: cannot broadcast [batch, time, 64] with [65] (emitted at layer.rs:41)``. `finish` also
//! rejects what was forgotten: a node, weight or input that no output depends on. Lines are found with
//! `#[track_caller]`; put it on a helper function to see the line that calls the helper instead. An operator that is
//! passed as a function (`reduce(Add::add)`) has no line in the user's source; a closure (`reduce(|a, b| a + b)`) has.
//!
//! # Custom operators and control flow
//! An [`Operator`] is a name, attributes, and a body in standard operators. [`Lowering`] decides whether
//! [`Scope::call`] writes a node of that name together with an ONNX function that contains the body, or the body
//! itself. [`Scope::scan`] is a recurrence along an axis, with its body as a closure.
//!
//! # Output
//! A finished [`Model`] becomes the bytes of one ONNX file with [`Model::to_bytes`], or of a file whose weights are
//! beside it with [`Model::to_bytes_external`] and [`Weight::encode`]. Its `Display` form has one line per node.

#![forbid(unsafe_code)]

mod arena;
mod attribute;
mod blocks;
mod constants;
mod declare;
mod dim;
mod emit;
mod encode;
mod encoder;
mod error;
mod graph;
mod literal;
mod model;
mod operator;
mod ops;
mod scope;
mod storage;
mod tensor_type;
mod text;
mod value;
mod values;
mod weight;
mod write;

pub use attribute::Attribute;
pub use densessm_proto::{DType, Lowering};
pub use dim::Dim;
pub use error::Error;
pub use graph::Graph;
pub use model::Model;
pub use operator::Operator;
pub use scope::Scope;
pub use storage::{Initializer, Storage};
pub use tensor_type::TensorType;
pub use value::Value;
pub use values::{ValueList, joined};
pub use weight::{Part, Prepare, Weight};
pub use write::ExternalData;
