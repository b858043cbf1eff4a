//! ONNX's operators as methods of [`Value`](crate::Value), one per operator in use: a typo does not compile.

mod arithmetic;
mod elementwise;
mod gather;
mod matmul;
mod reduce;
mod scan;
mod shape;

pub use shape::concat;
