//! The runtime's own tests, on graphs written here.

mod build;
mod bundle;
mod inline;
mod kernels;
mod operators;
