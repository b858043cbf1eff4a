//! Opening a bundle.

use crate::{MAMBA, RETNET, exported, exported_with};
use densessm_bundle::ExportOptions;
use densessm_proto::{DType, GraphKind, LogitsMode, Precision};
use densessm_session::{Bundle, signature};
use serde_json::{Value, json};
use std::{fs, path::Path};

/// What opening says once the manifest has been changed.
fn opened(folder: &Path, change: impl FnOnce(&mut Value)) -> String {
    let path = folder.join("densessm.json");
    let original = fs::read(&path).unwrap();
    let mut manifest: Value = serde_json::from_slice(&original).unwrap();
    change(&mut manifest);
    fs::write(&path, serde_json::to_vec(&manifest).unwrap()).unwrap();
    let error = Bundle::open(folder).err().map_or_else(|| "opened".to_owned(), |error| error.to_string());
    fs::write(&path, original).unwrap();
    error
}

#[test]
fn a_bundle_knows_its_model_its_files_and_itself() {
    for name in [MAMBA, RETNET] {
        let (_folder, bundle) = exported(name);
        bundle.verify().unwrap();
        assert_eq!(bundle.fingerprint().len(), 64);
        for kind in [GraphKind::Parallel, GraphKind::Recurrent] {
            assert!(bundle.graph_path(kind).unwrap().is_file());
            let mut expected = signature(bundle.architecture(), kind, LogitsMode::Last);
            let mut got = bundle.manifest().graph(kind).unwrap().clone();
            for entries in [&mut expected.inputs, &mut expected.outputs, &mut got.inputs, &mut got.outputs] {
                entries.sort_by(|one, other| one.name.cmp(&other.name));
            }
            assert_eq!(got, expected, "{name}");
        }
        let bytes: usize = bundle.states().iter().map(|state| state.bytes()).sum();
        let counter = if name == RETNET { 8 } else { 0 };
        assert_eq!(bundle.manifest().state_bytes_per_sequence, (bytes + counter) as u64);
    }
}

#[test]
fn two_models_have_two_fingerprints_and_two_exports_of_one_have_one() {
    let [one, same, other] = [MAMBA, MAMBA, RETNET].map(|name| exported(name).1.fingerprint());
    assert_eq!(one, same);
    assert_ne!(one, other);
}

#[test]
fn a_manifest_at_odds_with_itself_is_refused() {
    let (_folder, mamba) = exported(MAMBA);
    let (_other, retnet) = exported(RETNET);
    let huge = u64::MAX / 2;
    let cases: [(&Bundle, &str, Value, &str); 17] = [
        (&mamba, "/format_version", json!(0), "format_version: expected 1 to 2, got 0; export the checkpoint again"),
        (&mamba, "/format_version", json!(null), "format_version: expected 1 to 2, got none; export"),
        (&mamba, "/format_version", json!("1"), "format_version: expected 1 to 2, got none; export"),
        (&mamba, "/architecture/vocab_size", json!(0), "expected a vocab_size of at least 1, got 0"),
        (&mamba, "/architecture/vocab_size", json!(102), "expected logits fp32 [batch, 1, 102]"),
        (&mamba, "/architecture/conv_kernel", json!(0), "expected a conv_kernel of at least 1, got 0"),
        (&mamba, "/architecture/state_size", json!(huge), "expected states that fit into memory"),
        (&mamba, "/architecture/num_hidden_layers", json!(1_u64 << 40), "expected inputs for 1099511627776 layers"),
        (&mamba, "/architecture/num_hidden_layers", json!(4), "the parallel graph's inputs: expected 10, got 12"),
        (&mamba, "/architecture/family", json!("dense_llama"), "dense_llama"),
        (&retnet, "/architecture/num_attention_heads", json!(0), "expected heads that divide"),
        (&retnet, "/architecture/num_attention_heads", json!(3), "expected heads that divide"),
        (&retnet, "/architecture/query_key_dim", json!(huge - huge % 2), "expected states that fit into memory"),
        (&mamba, "/graphs/1/kind", json!("parallel"), "expected one parallel graph with fp32 activations, got several"),
        (&mamba, "/graphs/0/inputs/0/dtype", json!("int32"), "got input_ids int32 [batch, sequence]"),
        (&mamba, "/graphs", json!([]), "graphs: expected at least one"),
        (&mamba, "/state_bytes_per_sequence", json!(7), "got 7"),
    ];
    for (bundle, at, value, words) in cases {
        let error = opened(bundle.dir(), |manifest| *manifest.pointer_mut(at).unwrap() = value);
        let manifest = bundle.dir().join("densessm.json");
        assert!(error.starts_with(manifest.to_str().unwrap()) && error.contains(words), "{at}: {error}");
    }
    assert_eq!(opened(mamba.dir(), |_| {}), "opened");
}

#[test]
fn a_bundle_of_a_newer_version_is_refused_with_what_to_do() {
    let (_folder, bundle) = exported(MAMBA);
    let error = opened(bundle.dir(), |manifest| {
        manifest["format_version"] = json!(3);
        manifest["tool_version"] = json!("7.8.9");
        manifest["a field that this version does not know"] = json!({});
    });
    let expected = "format_version: expected at most 2, got 3; the bundle was written by densessm 7.8.9: use that \
                    version, or export the checkpoint again with this one";
    assert!(error.ends_with(expected), "{error}");
}

/// `tests/fixtures/format-1` was written by the version that introduced the format.
#[test]
fn bundles_of_format_1_open_whatever_this_version_writes() {
    let cases = [("dense_mamba", 2 * (16 * 3 + 16 * 4) * 4, 0), ("dense_retnet", 2 * 2 * 4 * 8 * 4, 8)];
    for (family, state_bytes, counter) in cases {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/format-1").join(family);
        let bundle = Bundle::open(&folder).unwrap();
        bundle.verify().unwrap();
        assert_eq!(bundle.manifest().format_version, 1);
        assert_eq!(bundle.manifest().logits, LogitsMode::All);
        assert_eq!((bundle.architecture().vocab_size(), bundle.architecture().hidden_size()), (19, 8));
        let states: usize = bundle.states().iter().map(|state| state.bytes()).sum();
        assert_eq!(states, state_bytes, "{family}");
        assert_eq!(bundle.manifest().state_bytes_per_sequence, (state_bytes + counter) as u64, "{family}");
    }
}

/// `tests/fixtures/format-2` was written by the version that introduced the format.
#[test]
fn bundles_of_format_2_have_graphs_with_two_types_of_activations() {
    for (family, half) in [("dense_mamba", DType::F16), ("dense_retnet", DType::BF16)] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/format-2").join(family);
        let bundle = Bundle::open(&folder).unwrap();
        bundle.verify().unwrap();
        let manifest = bundle.manifest();
        assert_eq!((manifest.format_version, manifest.precision.matrices()), (2, half));
        for kind in [GraphKind::Parallel, GraphKind::Recurrent] {
            assert_eq!(manifest.graph(kind).unwrap().file, kind.file());
            let entry = manifest.graph_with(kind, half).unwrap();
            assert_eq!(entry.file, format!("{kind}.{half}.onnx"));
            assert_eq!(bundle.entry_path(entry).unwrap(), folder.join(&entry.file));
            assert_eq!(entry.inputs, manifest.graph(kind).unwrap().inputs);
        }
        assert_eq!(manifest.fused_step(half), None);
    }
}

#[test]
fn graphs_have_activations_that_the_precision_allows() {
    let options = ExportOptions::default().with_precision(Precision::Fp16);
    let (_folder, bundle) = exported_with(MAMBA, &options);
    let cases = [
        (
            "/graphs/2/activations",
            json!("bfloat16"),
            "the parallel graph: expected activations in fp32 or fp16, got bf16",
        ),
        ("/graphs/2/activations", json!("float32"), "expected one parallel graph with fp32 activations, got several"),
        ("/graphs/2/fused", json!(true), "the parallel graph: expected a fused graph to be recurrent"),
        ("/precision", json!("fp32"), "the parallel graph: expected activations in fp32 or fp32, got fp16"),
    ];
    for (at, value, words) in cases {
        let error = opened(bundle.dir(), |manifest| {
            let (parent, field) = at.rsplit_once('/').unwrap();
            manifest.pointer_mut(parent).unwrap()[field] = value;
        });
        assert!(error.contains(words), "{at}: {error}");
    }
}

#[test]
fn files_lie_beside_the_manifest_and_nowhere_else() {
    let (folder, bundle) = exported(MAMBA);
    fs::write(folder.path().join("outside.onnx"), "graph").unwrap();
    let absolute = folder.path().join("outside.onnx").display().to_string();
    for name in ["../outside.onnx", absolute.as_str(), "..", ".", "", "sub/parallel.onnx", "./parallel.onnx", "a\\b"] {
        for at in ["/files/0/name", "/graphs/0/file"] {
            let error = opened(bundle.dir(), |manifest| *manifest.pointer_mut(at).unwrap() = json!(name));
            assert!(error.contains("files: expected"), "{at} {name:?}: {error}");
        }
    }
}

#[test]
fn files_that_are_missing_or_changed_are_named() {
    let (_folder, bundle) = exported(MAMBA);
    let weights = bundle.dir().join("model.onnx.data");
    let mut bytes = fs::read(&weights).unwrap();
    bytes[1000] ^= 1;
    fs::write(&weights, &bytes).unwrap();
    let error = Bundle::open(bundle.dir()).unwrap().verify().unwrap_err().to_string();
    assert!(error.contains("model.onnx.data: expected SHA-256 "), "{error}");

    bytes.pop();
    fs::write(&weights, &bytes).unwrap();
    let error = Bundle::open(bundle.dir()).unwrap_err().to_string();
    assert!(error.contains(&format!("model.onnx.data: expected {} bytes, got {}", bytes.len() + 1, bytes.len())));

    fs::remove_file(&weights).unwrap();
    assert!(Bundle::open(bundle.dir()).unwrap_err().to_string().contains("model.onnx.data: "));
    let error = opened(bundle.dir(), |manifest| {
        manifest["files"].as_array_mut().unwrap().retain(|file| file["name"] != "model.onnx.data");
    });
    assert!(error.contains("files: expected `model.onnx.data` among them"), "{error}");
}

#[test]
fn a_folder_without_a_manifest_and_a_manifest_that_is_none_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let error = || Bundle::open(folder.path()).unwrap_err().to_string();
    assert!(error().contains("densessm.json: not found; expected a bundle made by `densessm export`"), "{}", error());
    for text in ["", "[]", "{}", "{\"format_version\": 1}", "\u{0}\u{1}"] {
        fs::write(folder.path().join("densessm.json"), text).unwrap();
        assert!(error().contains("densessm.json: ") && !error().contains("not found"), "{}", error());
    }
}

#[test]
fn a_graph_that_was_not_exported_is_named_with_those_that_were() {
    let (_folder, bundle) = exported(MAMBA);
    let path = bundle.dir().join("densessm.json");
    let mut manifest: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    manifest["graphs"].as_array_mut().unwrap().remove(0);
    fs::write(&path, serde_json::to_vec(&manifest).unwrap()).unwrap();
    let error = Bundle::open(bundle.dir()).unwrap().graph_path(GraphKind::Parallel).unwrap_err().to_string();
    assert!(error.contains("expected a parallel graph, got recurrent"), "{error}");
}
