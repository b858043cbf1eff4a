//! Headers of safetensors files, indexes of shards, and configurations.

use crate::{folder, refused};
use densessm_checkpoint::Checkpoint;
use serde_json::{Value, json};
use std::fs;

/// A safetensors file of a header and as many bytes of data.
fn safetensors(header: &str, data: usize) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &vec![0; data]].concat()
}

fn refused_header(header: &str, data: usize, words: &str) {
    let folder = folder();
    fs::write(folder.path().join("model.safetensors"), safetensors(header, data)).unwrap();
    refused(folder.path(), "model.safetensors: ", words);
}

#[test]
fn headers_that_lie_are_refused() {
    let entry = |dtype: &str, shape: Value, start: u64, end: u64| json!({"dtype": dtype, "shape": shape, "data_offsets": [start, end]});
    let one = |entry: Value| json!({"a": entry}).to_string();
    assert!({
        let folder = folder();
        let header = one(entry("F32", json!([2, 3]), 0, 24));
        fs::write(folder.path().join("model.safetensors"), safetensors(&header, 24)).unwrap();
        Checkpoint::open(folder.path()).is_ok()
    });
    // Beyond the file, before its end, and of another size than shape and type make.
    refused_header(&one(entry("F32", json!([2, 3]), 0, 24)), 23, "bytes as its header says, got");
    refused_header(&one(entry("F32", json!([2, 3]), 0, 24)), 25, "bytes as its header says, got");
    refused_header(&one(entry("F32", json!([1_u64 << 40]), 0, 1 << 42)), 24, "bytes as its header says, got");
    refused_header(&one(entry("F32", json!([2, 3]), 0, 20)), 20, "header: ");
    refused_header(&one(entry("F32", json!([2, 3]), 24, 0)), 24, "header: ");
    refused_header(&one(entry("F32", json!([2, 3]), 4, 28)), 28, "header: ");
    refused_header(&one(entry("F32", json!([u64::MAX, 2, 0]), 0, 0)), 0, "header: ");
    refused_header(&one(entry("F32", json!([-1]), 0, 0)), 0, "header: ");
    refused_header(&one(entry("F7", json!([1]), 0, 4)), 4, "header: ");
    let a = entry("F32", json!([2]), 0, 8);
    refused_header(&json!({"a": a, "b": entry("F32", json!([2]), 4, 12)}).to_string(), 12, "header: ");
    refused_header(&json!({"a": a, "b": entry("F32", json!([2]), 0, 8)}).to_string(), 8, "header: ");
    refused_header(&json!({"a": a, "b": entry("F32", json!([2]), 12, 20)}).to_string(), 20, "header: ");
    refused_header(&format!(r#"{{"a": {a}, "a": {a}}}"#), 8, "header: a: there twice");
    refused_header(&json!({"a\u{1b}[2J": a}).to_string(), 8, "expected names without control characters");
    for header in ["", "[]", "{", "null", "{}}", "{\"a\": 1}"] {
        refused_header(header, 0, "header: ");
    }
    refused_header(&"[".repeat(100_000), 0, "header: ");
    refused_header(&" ".repeat(9 << 20), 0, "expected a header within its");
}

#[test]
fn an_index_that_lies_is_refused() {
    let header = |name: &str| json!({name: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).to_string();
    let folder = folder();
    let index = "model.safetensors.index.json";
    let write = |map: Value| fs::write(folder.path().join(index), json!({"weight_map": map}).to_string()).unwrap();
    for (file, name) in [("1.safetensors", "a"), ("2.safetensors", "b"), ("3.safetensors", "a")] {
        fs::write(folder.path().join(file), safetensors(&header(name), 8)).unwrap();
    }
    write(json!({"a": "1.safetensors", "b": "2.safetensors"}));
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert!(checkpoint.file(checkpoint.tensor("b").unwrap()).ends_with("2.safetensors"));
    assert_eq!(checkpoint.tensors().map(|tensor| tensor.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);

    write(json!({"a": "1.safetensors", "b": "4.safetensors"}));
    refused(folder.path(), "4.safetensors: ", "No such file");
    write(json!({"a": "2.safetensors", "b": "1.safetensors"}));
    refused(folder.path(), index, "a: expected in 2.safetensors, not found there");
    write(json!({"a": "1.safetensors", "b": "2.safetensors", "c": "2.safetensors"}));
    refused(folder.path(), index, "c: expected in 2.safetensors, not found there");
    write(json!({"b": "2.safetensors", "c": "1.safetensors"}));
    refused(folder.path(), index, "c: expected in 1.safetensors, not found there");
    write(json!({"a": "1.safetensors", "b": "2.safetensors", "c": "3.safetensors"}));
    refused(folder.path(), "3.safetensors", "a: there twice");
    for name in
        ["../1.safetensors", "/1.safetensors", "x/1.safetensors", "x\\1.safetensors", ".", "..", "", "./1.safetensors"]
    {
        write(json!({"a": name}));
        refused(folder.path(), index, "weight_map: expected plain file names, got");
    }
    write(json!({"a": "1.safetensors\0"}));
    refused(folder.path(), "1.safetensors", "");
    fs::create_dir(folder.path().join("5.safetensors")).unwrap();
    write(json!({"a": "5.safetensors"}));
    refused(folder.path(), "5.safetensors", "expected a file");
    write(json!({}));
    refused(folder.path(), index, "weight_map: expected tensors, got none");
    for map in [json!([]), json!({"a": 1}), json!(null)] {
        write(map);
        refused(folder.path(), index, "");
    }
}

#[test]
fn a_configuration_of_no_end_is_not_read() {
    let folder = folder();
    fs::write(folder.path().join("model.safetensors"), safetensors("{}", 0)).unwrap();
    assert!(Checkpoint::open(folder.path()).is_ok());
    fs::write(folder.path().join("config.json"), " ".repeat(17 << 20)).unwrap();
    refused(folder.path(), "config.json: ", "expected up to 16777216 bytes");
    fs::write(folder.path().join("config.json"), r#"{"model_type": "mamba", "layer_norm_epsilon": NaN}"#).unwrap();
    refused(folder.path(), "config.json: ", "line 1 column");
}
