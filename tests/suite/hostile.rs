//! Bad input: one clear error that names the file and what is wrong in it, exit code 2, and nothing written.

use crate::{
    bundles::{golden, trained},
    command::{densessm, error, export},
};
use densessm::Checkpoint;
use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Value, json};
use std::{fs, path::Path, process::Command};
use tempfile::TempDir;

/// Copies a model, so that the copy can be damaged.
fn copy(model: &Path) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(model).unwrap().map(Result::unwrap) {
        fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    folder
}

/// Exports a damaged model, which must be an error with all of `words` and must leave no file behind.
#[track_caller]
fn refused(model: &Path, words: &[&str]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let line = error(&mut export(model, &folder.path().join("bundle")));
    for word in words {
        assert!(line.contains(word), "expected {word:?} in {line:?}");
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "something was left behind: {line}");
    line
}

/// Changes fields of a model's configuration.
fn configured(model: &Path, fields: &Value) -> TempDir {
    let folder = copy(model);
    let path = folder.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    for (name, value) in fields.as_object().unwrap() {
        config[name] = value.clone();
    }
    fs::write(path, config.to_string()).unwrap();
    folder
}

#[test]
fn nonsense_in_the_configuration_is_named_by_its_field() {
    let mamba = golden("densemamba-m2-both-gates");
    let retnet = golden("denseretnet-m2-hub-layout-4-heads");
    let cases = [
        (&mamba, json!({"hidden_size": 0}), "config.json: hidden_size: expected a whole number"),
        (&mamba, json!({"num_hidden_layers": -3}), "num_hidden_layers: expected a whole number"),
        (&mamba, json!({"vocab_size": 1e30}), "vocab_size: expected a whole number"),
        (&mamba, json!({"state_size": "many"}), "state_size: expected a whole number"),
        (&mamba, json!({"conv_kernel": 0}), "conv_kernel: expected"),
        (&mamba, json!({"intermediate_size": 100}), "intermediate_size: expected expand · hidden_size = 128, got 100"),
        (&mamba, json!({"dense_gate": ["channel", "garden"]}), "dense_gate: expected a list of"),
        (&mamba, json!({"dense_projection": "cubic"}), "dense_projection: expected"),
        (&mamba, json!({"model_type": "gpt2"}), "model_type: expected dense_mamba, mamba"),
        (&mamba, json!({"hidden_act": "gelu"}), "hidden_act: expected \"silu\""),
        (&mamba, json!({"layer_norm_epsilon": -1}), "layer_norm_epsilon: expected a small positive number"),
        (&mamba, json!({"use_bias": "no"}), "use_bias: expected true or false"),
        (
            &retnet,
            json!({"num_attention_heads": 3}),
            "num_attention_heads: expected a divisor of query_key_dim = 32, got 3",
        ),
        (&retnet, json!({"query_key_dim": 4}), "query_key_dim: expected an even width"),
        (&retnet, json!({"deepnorm": true}), "deepnorm: expected false"),
        (&retnet, json!({"intermediate_k_select_scale": 4}), "intermediate_k_select_scale: expected a reduction"),
    ];
    for (model, fields, words) in cases {
        refused(configured(model, &fields).path(), &[words]);
    }
}

#[test]
fn more_neighbours_than_layers_are_accepted() {
    let model = configured(&golden("densemamba-m2-both-gates"), &json!({"dense_block_layers": 1000}));
    let folder = tempfile::tempdir().unwrap();
    let output = export(model.path(), &folder.path().join("bundle")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn every_tensor_that_does_not_fit_is_reported_at_once() {
    let model = configured(&golden("densemamba-m1-channel-gate"), &json!({"num_hidden_layers": 3, "vocab_size": 97}));
    let line =
        refused(model.path(), &["backbone.embeddings.weight: expected [97, 64], got [96, 64] in model.safetensors"]);
    // A whole layer is too many; each of its tensors is named.
    assert!(
        line.contains("backbone.layers.3.mixer.A_log: [128, 16] in model.safetensors is not a tensor of this model")
    );
    assert_eq!(line.lines().count(), 1 + 1 + 12, "{line}");
    let model = configured(&golden("densemamba-m1-channel-gate"), &json!({"num_hidden_layers": 5}));
    refused(model.path(), &["backbone.layers.4.norm.weight: missing, expected [64]"]);
}

#[test]
fn weights_that_are_no_numbers_are_named_by_file_tensor_and_place() {
    let model = copy(&golden("densemamba-m1-channel-gate"));
    let path = model.path().join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    for (value, shown) in [(f32::NAN, "NaN"), (f32::NEG_INFINITY, "-inf")] {
        let damaged: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
            .iter()
            .map(|(name, view)| {
                let mut data = view.data().to_vec();
                if name == "backbone.layers.2.mixer.D" {
                    data[4 * 5..4 * 6].copy_from_slice(&value.to_le_bytes());
                }
                (name.to_owned(), view.shape().to_vec(), data)
            })
            .collect();
        let views =
            damaged.iter().map(|(name, shape, data)| (name, TensorView::new(Dtype::F32, shape.clone(), data).unwrap()));
        fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
        let words = format!("backbone.layers.2.mixer.D: expected finite numbers, got {shown} at element 5");
        refused(model.path(), &["model.safetensors: ", &words]);
    }
}

#[test]
fn truncated_files_and_files_with_false_headers_are_named() {
    let model = copy(&golden("densemamba-m1-channel-gate"));
    let path = model.path().join("model.safetensors");
    let whole = fs::read(&path).unwrap();
    for length in [0, 7, 8, 100, whole.len() / 2, whole.len() - 1] {
        fs::write(&path, &whole[..length]).unwrap();
        refused(model.path(), &["model.safetensors: "]);
    }
    let mut lying = whole.clone();
    lying[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    fs::write(&path, &lying).unwrap();
    refused(model.path(), &["model.safetensors: expected a header within its"]);
    fs::write(&path, [&whole[..], b"more"].concat()).unwrap();
    refused(model.path(), &["model.safetensors: expected 562224 bytes as its header says, got 562228"]);

    let model = copy(&golden("denseretnet-m1-reference-layout"));
    let path = model.path().join("pytorch_model.bin");
    let whole = fs::read(&path).unwrap();
    for length in [0, 100, whole.len() / 2, whole.len() - 1] {
        fs::write(&path, &whole[..length]).unwrap();
        refused(model.path(), &["pytorch_model.bin: "]);
    }
    fs::write(&path, b"\x80\x02}q\x00.").unwrap();
    refused(model.path(), &["pytorch_model.bin: written by a torch older than 1.6", "torch.save it again"]);
}

#[test]
fn a_pickle_that_would_run_code_is_refused_by_the_name_of_what_it_calls() {
    let model = copy(&golden("denseretnet-m1-reference-layout"));
    let witness = model.path().join("witness");
    let pickle = format!("\u{0}cposix\nsystem\n(X\u{6}\0\0\0touch tR.{}", witness.display());
    let pickle = [b"\x80\x02".as_slice(), &pickle.as_bytes()[1..]].concat();
    let file = fs::File::create(model.path().join("pytorch_model.bin")).unwrap();
    let mut archive = zip::ZipWriter::new(file);
    let stored = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    archive.start_file("model/data.pkl", stored).unwrap();
    std::io::Write::write_all(&mut archive, &pickle).unwrap();
    archive.finish().unwrap();
    refused(model.path(), &["pytorch_model.bin: data.pkl: `posix.system` is not a class", "refusing to load it"]);
    assert!(!witness.exists());
}

#[test]
fn shards_stay_in_their_folder() {
    for name in ["../model-00001-of-00002.safetensors", "/etc/passwd", "a/b.safetensors", "..", ""] {
        let model = copy(&golden("densemamba-m2-both-gates"));
        let path = model.path().join("model.safetensors.index.json");
        let mut index: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        index["weight_map"]["backbone.norm_f.weight"] = json!(name);
        fs::write(&path, index.to_string()).unwrap();
        refused(model.path(), &["model.safetensors.index.json: weight_map: expected plain file names, got"]);
    }
    let model = copy(&golden("densemamba-m2-both-gates"));
    fs::remove_file(model.path().join("model-00002-of-00002.safetensors")).unwrap();
    refused(model.path(), &["model-00002-of-00002.safetensors: "]);
}

#[test]
fn all_wrong_entries_of_an_index_are_reported_at_once() {
    let model = copy(&golden("densemamba-m2-both-gates"));
    let path = model.path().join("model.safetensors.index.json");
    let mut index: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let map = index["weight_map"].as_object_mut().unwrap();
    let (first, second) = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors");
    let names: Vec<String> = map.iter().filter(|(_, shard)| *shard == first).map(|(name, _)| name.clone()).collect();
    map[&names[0]] = json!(second);
    map.remove(&names[1]);
    map[&names[2]] = json!("../elsewhere.safetensors");
    map.insert("made.up".to_owned(), json!(first));
    map.insert("lost".to_owned(), json!("model-00003-of-00002.safetensors"));
    fs::write(&path, index.to_string()).unwrap();
    refused(
        model.path(),
        &[
            "model.safetensors.index.json: 5 of its entries are wrong\n",
            &format!("\n  {}: expected in {second}, found in {first}", names[0]),
            &format!("\n  {}: found in {first}, not in the index", names[1]),
            "\n  weight_map: expected plain file names, got \"../elsewhere.safetensors\"",
            &format!("\n  made.up: expected in {first}, not found there"),
            "\n  model-00003-of-00002.safetensors: missing, expected a file with 1 of the tensors",
        ],
    );

    let model = copy(&golden("densemamba-m2-both-gates"));
    let shard = model.path().join(second);
    let whole = fs::read(&shard).unwrap();
    fs::write(&shard, &whole[..whole.len() - 1]).unwrap();
    refused(model.path(), &["model-00002-of-00002.safetensors: expected ", " bytes as its header says, got "]);
}

#[test]
fn a_flipped_bit_of_a_torch_file_is_named_by_entry_and_tensor() {
    let model = copy(&golden("denseretnet-m1-reference-layout"));
    let path = model.path().join("pytorch_model.bin");
    let (whole, checkpoint) = (fs::read(&path).unwrap(), Checkpoint::open(model.path()).unwrap());
    let mut archive = zip::ZipArchive::new(std::io::Cursor::new(&whole)).unwrap();
    let mut flipped = 0;
    for index in 0..archive.len() {
        let entry = archive.by_index(index).unwrap();
        let name = entry.name().unwrap().into_owned();
        let Some((_, inner)) = name.split_once('/').filter(|(_, inner)| inner.starts_with("data")) else { continue };
        // The lowest bit of a weight's fraction, or of a byte of the pickle; and a bit of the stored checksum.
        let middle = entry.data_start().unwrap() + entry.size() / 2 / 4 * 4;
        for at in [middle as usize, entry.central_header_start() as usize + 16] {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            fs::write(&path, damaged).unwrap();
            let line = refused(model.path(), &["pytorch_model.bin: ", "expected CRC-32 "]);
            let (_, named) = line.split_once(&format!("pytorch_model.bin: {inner}: ")).expect("the entry is named");
            let tensor = named.split_once(": ").map(|(tensor, _)| tensor);
            let known = tensor.is_some_and(|tensor| checkpoint.tensor(tensor).is_some());
            assert_eq!(known, inner != "data.pkl", "{line}");
            assert!(line.ends_with("; the file is damaged, copy or download it again"), "{line}");
            flipped += 1;
        }
    }
    assert!(flipped > 10, "{flipped}");
}

#[test]
fn a_disk_that_takes_no_more_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    // Files may grow to 1 MiB (in blocks of 512 bytes), and the signal that would say so is ignored: the write fails.
    let script = "trap '' XFSZ; ulimit -f 2048; exec \"$0\" \"$@\"";
    let mut command = Command::new("sh");
    command.args(["-c", script]).arg(densessm().get_program()).arg("export");
    command.arg("--model").arg(trained("densemamba-tiny")).arg("--out").arg(folder.path().join("bundle"));
    let line = error(&mut command);
    assert!(line.contains("model.onnx.data: File too large"), "{line}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn only_text_needs_a_tokenizer() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().join("bundle");
    assert!(export(&golden("mamba-m0-transformers"), &bundle).output().unwrap().status.success());
    assert!(densessm().arg("inspect").arg(&bundle).output().unwrap().status.success());
    let line = error(densessm().args(["generate", "--runtime", "tract", "--prompt", "x", "--bundle"]).arg(&bundle));
    assert!(line.contains("tokenizer.json"), "{line}");
}

#[test]
fn prompts_and_inputs_that_no_model_takes_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().join("bundle");
    assert!(export(&trained("densemamba-tiny"), &bundle).output().unwrap().status.success());
    let generate = || {
        let mut command = densessm();
        command.args(["generate", "--runtime", "tract", "--bundle"]).arg(&bundle);
        command
    };
    assert!(error(generate().args(["--prompt", ""])).contains("prompt"));
    assert!(error(&mut generate()).contains("--prompt"));
    assert!(error(generate().args(["--prompt", "x", "--temperature", "-1"])).contains("temperature"));
    assert!(error(generate().args(["--prompt", "x", "--top-p", "2"])).contains("top"));

    let inputs = folder.path().join("inputs");
    let run = |name: &str, shape: Vec<usize>, ids: &[i64]| {
        let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        let view = TensorView::new(Dtype::I64, shape, &bytes).unwrap();
        fs::write(&inputs, safetensors::serialize([(name, view)], None).unwrap()).unwrap();
        let mut command = densessm();
        command.args(["run", "--runtime", "tract", "--graph", "recurrent", "--bundle"]).arg(&bundle);
        error(command.arg("--inputs").arg(&inputs).arg("--outputs").arg(folder.path().join("outputs")))
    };
    assert!(
        run("input_ids", vec![1, 1], &[1024]).contains("input_ids: token 0: expected an id from 0 to 1023, got 1024")
    );
    assert!(run("input_ids", vec![1, 2], &[1, 2]).contains("input_ids: expected int64 [1, 1], got int64 [1, 2]"));
    assert!(run("input_idz", vec![1, 1], &[1]).contains("input_idz: no input of the recurrent graph"));
    assert!(!folder.path().join("outputs").exists());
}

#[test]
fn a_bundle_that_was_tampered_with_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().join("bundle");
    assert!(export(&trained("densemamba-tiny"), &bundle).output().unwrap().status.success());
    let manifest = fs::read_to_string(bundle.join("densessm.json")).unwrap();
    let inspect = || error(densessm().arg("inspect").arg(&bundle));
    for (from, to, words) in [
        ("\"format_version\": 2", "\"format_version\": 99", "format_version: expected at most 2, got 99"),
        ("\"name\": \"tokenizer.json\"", "\"name\": \"../tokenizer.json\"", "files: expected plain file names"),
        ("\"precision\": \"fp32\"", "\"precision\": \"fp1\"", "densessm.json"),
    ] {
        fs::write(bundle.join("densessm.json"), manifest.replace(from, to)).unwrap();
        assert!(inspect().contains(words), "{words}");
    }
    fs::write(bundle.join("densessm.json"), &manifest).unwrap();
    fs::write(bundle.join("model.onnx.data"), "short").unwrap();
    assert!(inspect().contains("model.onnx.data: expected 5169792 bytes, got 5"));
}
