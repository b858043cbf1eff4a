//! An ONNX graph builder: a graph is written as one writes the equations, and checked at every operation.
//!
//! ```
//! use densessm_graph::{DType, Graph, Scope, TensorType, Value};
//! use densessm_proto::Lowering;
//!
//! /// `y = x Wᵀ + b`: `[.., d_in] -> [.., d_out]`.
//! fn linear<'g>(p: Scope<'g>, name: &str, x: Value<'g>, d_out: usize) -> Value<'g> {
//!     p.scope(name, |p| {
//!         let w = p.weight_t("weight", [d_out, x.size(-1)]);
//!         let b = p.weight("bias", [d_out]);
//!         x.matmul(w) + b
//!     })
//! }
//!
//! let graph = Graph::new("example", 18, Lowering::Inline)?;
//! let x = graph.input("x", TensorType::new(DType::F32, ["batch".into(), densessm_graph::Dim::from(8_usize)]));
//! let [v, gate] = linear(graph.root(), "to_hidden.0", x, 32).silu().split(-1);
//! graph.output("y", v * gate);
//! let model = graph.finish()?;
//! assert_eq!(model.weights().map(|weight| &*weight.name).collect::<Vec<_>>(), ["to_hidden.0.weight", "to_hidden.0.bias"]);
//! # Ok::<(), densessm_graph::Error>(())
//! ```
//!
//! The design: [`Value`] and [`Scope`] are `Copy` handles into a [`Graph`]; operations return values, not results.
//! The first mistake is kept with the line that made it and reported by [`Graph::finish`], the only fallible call.

#![forbid(unsafe_code)]

mod arena;
mod attribute;
mod blocks;
mod constants;
mod declare;
mod dim;
mod emit;
mod encode;
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
