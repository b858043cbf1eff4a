//! Compiles the `.proto` files to Rust with a compiler written in Rust, so that no `protoc` is needed.

fn main() {
    println!("cargo::rerun-if-changed=onnx.proto");
    let files = protox::compile(["onnx.proto"], ["."]).unwrap_or_else(|error| panic!("{error:?}"));
    prost_build::compile_fds(files).expect("OUT_DIR is writable");
}
