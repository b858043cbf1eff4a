//! The committed types are those that `onnx.proto` describes.

use std::{fs, path::Path};

#[test]
fn committed_types_are_what_the_compiler_generates() {
    let home = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = protox::compile(["onnx.proto"], [home]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    prost_build::Config::new().out_dir(folder.path()).compile_fds(files).unwrap();
    let generated = fs::read_to_string(folder.path().join("onnx.rs")).unwrap();
    let committed = home.join("src/generated/onnx.rs");
    if std::env::var_os("UPDATE_GENERATED").is_some() {
        fs::write(&committed, &generated).unwrap();
    }
    let current = fs::read_to_string(&committed).unwrap() == generated;
    assert!(current, "{}: out of date; run this test with UPDATE_GENERATED=1", committed.display());
}
