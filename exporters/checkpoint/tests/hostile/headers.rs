//! Headers of safetensors files, indexes of shards, and configurations.

use crate::{folder, refused};
use densessm_checkpoint::{Checkpoint, Error};
use serde_json::{Value, json};
use std::{collections::BTreeMap, fs, path::Path};

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
    refused_header(&format!(r#"{{"a": {a}, "a": {a}}}"#), 8, "header: a: appears twice");
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
    refused(folder.path(), index, "4.safetensors: missing, expected a file with 1 of the tensors");
    write(json!({"a": "2.safetensors", "b": "1.safetensors"}));
    let error = Checkpoint::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("a: expected in 2.safetensors, found in 1.safetensors"), "{error}");
    assert!(error.contains("b: expected in 1.safetensors, found in 2.safetensors"), "{error}");
    write(json!({"a": "1.safetensors", "b": "2.safetensors", "c": "2.safetensors"}));
    refused(folder.path(), index, "c: expected in 2.safetensors, not found there");
    write(json!({"b": "2.safetensors", "c": "1.safetensors"}));
    let error = Checkpoint::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("a: found in 1.safetensors, not in the index"), "{error}");
    assert!(error.contains("c: expected in 1.safetensors, not found there"), "{error}");
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
    refused(folder.path(), "5.safetensors", "expected a regular file");
    write(json!({}));
    refused(folder.path(), index, "weight_map: expected tensors, got none");
    for map in [json!([]), json!({"a": 1}), json!(null)] {
        write(map);
        refused(folder.path(), index, "");
    }
}

/// Writes an index of shards as text, since a JSON value cannot hold a name twice.
fn write_index(folder: &Path, entries: &[(&str, &str)]) {
    let entries: Vec<String> = entries.iter().map(|(name, shard)| format!("{name:?}: {shard:?}")).collect();
    let text = format!("{{\"weight_map\": {{{}}}}}", entries.join(", "));
    fs::write(folder.join("model.safetensors.index.json"), text).unwrap();
}

#[test]
fn all_wrong_entries_of_an_index_are_reported_at_once() {
    let folder = folder();
    let shard = |name: &str, tensors: &[&str]| {
        let entries: BTreeMap<_, _> = tensors
            .iter()
            .enumerate()
            .map(|(i, name)| (*name, json!({"dtype": "F32", "shape": [2], "data_offsets": [8 * i, 8 * i + 8]})))
            .collect();
        fs::write(folder.path().join(name), safetensors(&json!(entries).to_string(), 8 * tensors.len())).unwrap();
    };
    shard("1.safetensors", &["a", "b", "extra"]);
    shard("2.safetensors", &["b", "c", "d", "e"]);
    let entries = [
        ("a", "1.safetensors"),
        ("b", "1.safetensors"),
        ("c", "1.safetensors"),
        ("d", "2.safetensors"),
        ("e", "2.safetensors"),
        ("e", "1.safetensors"),
        ("f", "2.safetensors"),
        ("g", "../2.safetensors"),
        ("h", "3.safetensors"),
        ("i", "3.safetensors"),
    ];
    write_index(folder.path(), &entries);
    let Err(Error::Index { path, problems }) = Checkpoint::open(folder.path()) else { panic!("expected an error") };
    assert!(path.ends_with("model.safetensors.index.json"));
    let expected = [
        "3.safetensors: missing, expected a file with 2 of the tensors",
        "b: expected in 1.safetensors, found in 1.safetensors and 2.safetensors",
        "c: expected in 1.safetensors, found in 2.safetensors",
        "e: listed twice, in 2.safetensors and in 1.safetensors",
        "extra: found in 1.safetensors, not in the index",
        "f: expected in 2.safetensors, not found there",
        "weight_map: expected plain file names, got \"../2.safetensors\" for g",
    ];
    assert_eq!(problems, expected);
    let text = Error::Index { path, problems }.to_string();
    assert!(text.ends_with(&format!("7 of its entries are wrong\n  {}", expected.join("\n  "))), "{text}");
}

#[test]
fn an_index_that_is_wrong_throughout_is_reported_in_few_lines() {
    let folder = folder();
    let missing: Vec<String> = (10..35).map(|i| format!("{i}.safetensors")).collect();
    let entries: Vec<(&str, &str)> = missing.iter().map(|shard| (shard.as_str(), shard.as_str())).collect();
    write_index(folder.path(), &entries);
    let error = Checkpoint::open(folder.path()).unwrap_err();
    let text = error.to_string();
    assert_eq!(text.lines().count(), 22, "{text}");
    assert!(text.contains("25 of its entries are wrong\n  10.safetensors: missing"), "{text}");
    assert!(text.ends_with("  29.safetensors: missing, expected a file with 1 of the tensors\n  and 5 more"), "{text}");
    assert!(matches!(error, Error::Index { problems, .. } if problems.len() == 25));
}

#[test]
fn a_truncated_shard_is_named() {
    let folder = folder();
    let header = |name: &str| json!({name: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).to_string();
    fs::write(folder.path().join("1.safetensors"), safetensors(&header("a"), 8)).unwrap();
    write_index(folder.path(), &[("a", "1.safetensors"), ("b", "2.safetensors")]);
    let whole = safetensors(&header("b"), 8);
    for length in 0..whole.len() {
        fs::write(folder.path().join("2.safetensors"), &whole[..length]).unwrap();
        refused(folder.path(), "2.safetensors: ", "");
    }
    fs::write(folder.path().join("2.safetensors"), whole).unwrap();
    assert!(Checkpoint::open(folder.path()).is_ok());
}

#[test]
fn a_configuration_that_is_too_large_is_not_read() {
    let folder = folder();
    fs::write(folder.path().join("model.safetensors"), safetensors("{}", 0)).unwrap();
    assert!(Checkpoint::open(folder.path()).is_ok());
    fs::write(folder.path().join("config.json"), " ".repeat(17 << 20)).unwrap();
    refused(folder.path(), "config.json: ", "expected up to 16777216 bytes");
    fs::write(folder.path().join("config.json"), r#"{"model_type": "mamba", "layer_norm_epsilon": NaN}"#).unwrap();
    refused(folder.path(), "config.json: ", "line 1 column");
}
