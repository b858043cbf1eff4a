//! Accounting for every tensor, and which ones nobody asks for.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use densessm_checkpoint::Checkpoint;
use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Value, json};
use std::{fs, path::Path};
use tempfile::TempDir;

type Shape = Vec<usize>;

fn write(path: &Path, tensors: &[(&str, Dtype, Shape)]) {
    let bytes: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(_, dtype, shape)| vec![0; dtype.bitsize() / 8 * shape.iter().product::<usize>()])
        .collect();
    let views = tensors
        .iter()
        .zip(&bytes)
        .map(|((name, dtype, shape), bytes)| (*name, TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// A checkpoint with these tensors, of fp32.
fn opened(config: &Value, tensors: &[(&str, Shape)]) -> (TempDir, Checkpoint) {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let tensors: Vec<_> = tensors.iter().map(|(name, shape)| (*name, Dtype::F32, shape.clone())).collect();
    write(&folder.path().join("model.safetensors"), &tensors);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    (folder, checkpoint)
}

fn problems(checkpoint: &Checkpoint, declared: &[(&str, Shape)]) -> Vec<String> {
    match checkpoint.account(declared.iter().map(|(name, shape)| (*name, shape.as_slice()))) {
        Ok(()) => Vec::new(),
        Err(error) => {
            let text = error.to_string();
            let mut lines = text.lines().map(str::to_owned);
            let (first, rest) = (lines.next().unwrap(), lines.map(|line| line.trim().to_owned()).collect::<Vec<_>>());
            let folder = checkpoint.dir().display();
            assert_eq!(first, format!("{folder}: {} of its tensors do not fit the model", rest.len()));
            rest
        }
    }
}

fn mamba(tied: bool) -> Value {
    json!({
        "model_type": "dense_mamba", "vocab_size": 8, "hidden_size": 16, "num_hidden_layers": 4,
        "dense_block_layers": 3, "tie_word_embeddings": tied,
    })
}

fn retnet(layers: usize, m: usize) -> Value {
    json!({
        "vocab_size": 8, "hidden_size": 16, "num_hidden_layers": layers, "num_attention_heads": 2, "query_key_dim": 8,
        "v_factor": 2, "dense_block_layers": m,
    })
}

#[test]
fn missing_unknown_and_misshapen_tensors_are_reported_at_once() {
    let tensors = [("a", vec![2, 3]), ("b", vec![4]), ("c", vec![5]), ("backbone.embedding.weight", vec![8, 16])];
    let (_folder, checkpoint) = opened(&mamba(true), &tensors);
    let embedding = ("backbone.embeddings.weight", vec![8, 16]);
    assert!(
        problems(&checkpoint, &[tensors[0].clone(), tensors[1].clone(), tensors[2].clone(), embedding.clone()])
            .is_empty()
    );
    assert_eq!(
        problems(&checkpoint, &[("a", vec![3, 2]), ("b", vec![4, 1]), ("d", vec![7]), embedding]),
        [
            "a: expected [3, 2], got [2, 3] in model.safetensors",
            "b: expected [4, 1], got [4] in model.safetensors",
            "d: missing, expected [7]",
            "c: [5] in model.safetensors is not a tensor of this model",
        ]
    );
}

#[test]
fn weights_that_are_no_floats_are_found_before_they_are_read() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.json"), mamba(true).to_string()).unwrap();
    let tensors = [("a", Dtype::I64, vec![2]), ("b", Dtype::F8_E4M3, vec![4]), ("c", Dtype::BF16, vec![3])];
    write(&folder.path().join("model.safetensors"), &tensors);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(
        problems(&checkpoint, &[("a", vec![2]), ("b", vec![4]), ("c", vec![3])]),
        [
            "a: expected fp32, fp16, bf16 or fp64, got int64 in model.safetensors",
            "b: expected fp32, fp16, bf16 or fp64, got F8_E4M3 in model.safetensors",
        ]
    );
}

#[test]
fn a_tied_head_may_be_there_in_the_shape_of_the_embedding() {
    let head = |shape: Shape| [("lm_head.weight", shape)];
    for (tied, shape, expected) in [
        (true, vec![8, 16], ""),
        (true, vec![9, 16], "lm_head.weight: expected [8, 16], got [9, 16] in model.safetensors"),
        (false, vec![8, 16], "lm_head.weight: [8, 16] in model.safetensors is not a tensor of this model"),
    ] {
        let (_folder, checkpoint) = opened(&mamba(tied), &head(shape));
        assert_eq!(problems(&checkpoint, &[]).join("\n"), expected);
    }
    let mut config = retnet(2, 1);
    config["tie_word_embeddings"] = json!(true);
    let (_folder, checkpoint) = opened(&config, &head(vec![8, 16]));
    assert!(problems(&checkpoint, &[]).is_empty());
}

#[test]
fn tensors_that_a_dense_retnet_never_reads_may_be_there() {
    let names = [
        "model.layers.0.self_attn.k_norm.weight",
        "model.layers.0.self_attn.k_select.fc1.weight",
        "model.layers.0.self_attn.v_norm.weight",
        "model.layers.0.self_attn.v_select.fc2.weight",
        "model.retnet_rel_pos.angle",
        "model.retnet_rel_pos.decay",
    ];
    let (_folder, checkpoint) = opened(&retnet(2, 1), &names.map(|name| (name, vec![1])));
    assert!(problems(&checkpoint, &[]).is_empty());
    for name in [
        "model.layers.1.self_attn.k_norm.weight",
        "model.layers.1.self_attn.k_select.fc1.weight",
        "model.layers.00.self_attn.k_norm.weight",
        "model.layers.+0.self_attn.k_norm.weight",
        "model.layers.0.self_attn.q_norm.weight",
        "model.retnet_rel_pos.angles",
        "lm_head.weight",
    ] {
        let (_folder, checkpoint) = opened(&retnet(2, 1), &[(name, vec![1])]);
        let expected = format!("{name}: [1] in model.safetensors is not a tensor of this model");
        assert_eq!(problems(&checkpoint, &[]), [expected]);
    }
    // Without neighbours no gate is read; the norms of layers above the first are.
    let gate = ("model.layers.1.self_attn.k_select.fc1.weight", vec![1, 16]);
    let (_folder, checkpoint) = opened(&retnet(2, 0), &[gate, ("model.layers.1.self_attn.k_norm.weight", vec![8])]);
    let expected = "model.layers.1.self_attn.k_norm.weight: [8] in model.safetensors is not a tensor of this model";
    assert_eq!(problems(&checkpoint, &[]), [expected]);
}

#[test]
fn projections_of_neighbours_that_no_layer_has_may_be_there() {
    let name =
        |layer: usize, neighbour: usize| format!("backbone.layers.{layer}.mixer.dense.projections.{neighbour}.weight");
    // Layer 1 has one layer below it, and m is 3.
    for (layer, neighbour, ignored) in
        [(1, 1, true), (1, 2, true), (2, 2, true), (1, 0, false), (1, 3, false), (4, 0, false)]
    {
        let name = name(layer, neighbour);
        let (_folder, checkpoint) = opened(&mamba(true), &[(&name, vec![16, 16])]);
        assert_eq!(problems(&checkpoint, &[]).is_empty(), ignored, "{name}");
    }
}
