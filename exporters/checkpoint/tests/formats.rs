//! The formats, from files that torch and safetensors wrote, whole and spoilt in every place.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use densessm_checkpoint::{Checkpoint, DType, Error};
use std::{
    fs,
    path::{Path, PathBuf},
};
use tempfile::TempDir;

const MAMBA: &str = r#"{"model_type": "mamba", "vocab_size": 8, "hidden_size": 16, "num_hidden_layers": 1}"#;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens").join(name)
}

/// A checkpoint whose weights are those bytes; what it configures does not matter to reading them.
fn folder(weights: &str, bytes: &[u8]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.json"), MAMBA).unwrap();
    fs::write(folder.path().join(weights), bytes).unwrap();
    folder
}

fn opened(weights: &str, bytes: &[u8]) -> Result<Checkpoint, Error> {
    Checkpoint::open(folder(weights, bytes).path())
}

fn all(checkpoint: &Checkpoint, name: &str) -> Vec<f32> {
    let tensor = checkpoint.tensor(name).unwrap();
    let mut values = vec![0.0; tensor.elements()];
    checkpoint.read(tensor, 0, &mut values).unwrap();
    values
}

#[test]
fn every_protocol_gives_the_tensors_that_torch_saved() {
    let numbers: Vec<f32> = (0..12_u8).map(|i| f32::from(i) / 8.0).collect();
    let turned: Vec<f32> = (0..4).flat_map(|c| (0..3).map(move |r| (r * 4 + c) as f32 / 8.0)).collect();
    for name in ["protocol-2.bin", "protocol-3.bin", "protocol-4.bin", "protocol-5.bin", "plain-dict.bin"] {
        let checkpoint = opened("pytorch_model.bin", &fs::read(fixture(name)).unwrap()).unwrap();
        for (tensor, dtype) in
            [("float", DType::F32), ("half", DType::F16), ("bfloat16", DType::BF16), ("double", DType::F64)]
        {
            assert_eq!(checkpoint.tensor(tensor).unwrap().dtype, dtype);
            assert_eq!(checkpoint.tensor(tensor).unwrap().shape, [3, 4]);
            assert_eq!(all(&checkpoint, tensor), numbers, "{name}: {tensor}");
        }
        assert_eq!(checkpoint.tensor("turned").unwrap().shape, [4, 3]);
        assert_eq!(all(&checkpoint, "turned"), turned, "{name}");
        assert_eq!(all(&checkpoint, "tail"), numbers[4..], "{name}");
        assert_eq!(all(&checkpoint, "tied"), numbers, "{name}");
        assert_eq!(all(&checkpoint, "parameter"), numbers, "{name}");
        let steps = checkpoint.tensor("steps").unwrap();
        let error = checkpoint.read(steps, 0, &mut [0.0]).unwrap_err().to_string();
        assert!(error.ends_with("steps: expected F32, F16, BF16 or F64, got I64"), "{error}");
    }
}

#[test]
fn any_piece_of_a_tensor_is_the_same_piece_of_the_whole() {
    let checkpoint = opened("pytorch_model.bin", &fs::read(fixture("protocol-2.bin")).unwrap()).unwrap();
    for name in ["float", "bfloat16", "turned", "tail"] {
        let (tensor, whole) = (checkpoint.tensor(name).unwrap(), all(&checkpoint, name));
        for start in 0..whole.len() {
            for end in start..=whole.len() {
                let mut piece = vec![f32::NAN; end - start];
                checkpoint.read(tensor, start, &mut piece).unwrap();
                assert_eq!(piece, whole[start..end], "{name} {start}..{end}");
            }
        }
    }
}

#[test]
fn what_is_no_table_of_tensors_is_refused_with_a_remedy() {
    let error = |name: &str| opened("pytorch_model.bin", &fs::read(fixture(name)).unwrap()).unwrap_err().to_string();
    assert!(
        error("nested.bin")
            .contains("state_dict: expected a tensor, got a dictionary; save the model's state_dict alone")
    );
    assert!(error("module.bin").contains("`torch.nn.modules.linear.Linear` is no class that a table of tensors needs"));
    assert!(error("legacy.bin").contains("torch older than 1.6; load it and torch.save it again"));
    assert!(opened("pytorch_model.bin", &fs::read(fixture("state-dict.bin")).unwrap()).is_ok());
}

/// Opens spoilt bytes and, where that goes well, reads every tensor: an error is fine, a panic is not.
fn survives(folder: &TempDir, weights: &str, bytes: &[u8]) -> bool {
    fs::write(folder.path().join(weights), bytes).unwrap();
    let Ok(checkpoint) = Checkpoint::open(folder.path()) else { return false };
    checkpoint.tensors().all(|tensor| {
        assert!(tensor.elements() <= 1 << 20, "a spoilt file claims {:?}", tensor.shape);
        checkpoint.read(tensor, 0, &mut vec![0.0; tensor.elements()]).is_ok()
    })
}

#[test]
fn no_prefix_of_a_file_is_taken_for_the_whole() {
    for (weights, path, step) in [
        ("model.safetensors", golden("mamba-m0-transformers").join("model.safetensors"), 1009),
        ("pytorch_model.bin", fixture("protocol-2.bin"), 7),
    ] {
        let whole = fs::read(path).unwrap();
        assert!(opened(weights, &whole).is_ok());
        for length in (0..whole.len()).step_by(step) {
            assert!(opened(weights, &whole[..length]).is_err(), "{weights}: the first {length} bytes");
        }
    }
}

#[test]
fn a_flipped_byte_is_an_error_or_another_number_but_no_panic() {
    let whole = fs::read(fixture("protocol-2.bin")).unwrap();
    let torch = folder("pytorch_model.bin", &whole);
    for at in 0..whole.len() {
        for flip in [0x01, 0xff] {
            let mut spoilt = whole.clone();
            spoilt[at] ^= flip;
            survives(&torch, "pytorch_model.bin", &spoilt);
        }
    }
    let tensors = [("a", vec![2_usize, 3]), ("b", vec![4])];
    let data: Vec<Vec<u8>> = tensors.iter().map(|(_, shape)| vec![0; 4 * shape.iter().product::<usize>()]).collect();
    let views = tensors.iter().zip(&data).map(|((name, shape), data)| {
        (*name, safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), data).unwrap())
    });
    let whole = safetensors::serialize(views, None).unwrap();
    let safe = folder("model.safetensors", &whole);
    assert!(survives(&safe, "model.safetensors", &whole));
    for at in 0..whole.len() {
        for flip in [0x01, 0x10, 0x80, 0xff] {
            let mut spoilt = whole.clone();
            spoilt[at] ^= flip;
            survives(&safe, "model.safetensors", &spoilt);
        }
    }
}

#[test]
fn every_golden_opens_and_every_float_in_it_is_finite() {
    for entry in fs::read_dir(golden("")).unwrap().map(Result::unwrap) {
        let checkpoint = Checkpoint::open(&entry.path()).unwrap();
        let elements: usize = checkpoint.tensors().map(|tensor| all(&checkpoint, &tensor.name).len()).sum();
        assert!(elements > 10_000, "{}", entry.path().display());
    }
}

#[test]
fn the_old_name_of_the_embedding_is_known() {
    let data = vec![0; 4 * 8 * 16];
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![8, 16], &data).unwrap();
    let bytes = safetensors::serialize([("backbone.embedding.weight", view)], None).unwrap();
    let checkpoint = opened("model.safetensors", &bytes).unwrap();
    assert_eq!(checkpoint.tensor("backbone.embeddings.weight").unwrap().shape, [8, 16]);
}

#[test]
fn a_folder_without_weights_says_what_was_looked_for() {
    let folder = folder("readme.txt", b"");
    let error = Checkpoint::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("no weights; expected model.safetensors or pytorch_model.bin"), "{error}");
    let error = Checkpoint::open(Path::new("/nowhere")).unwrap_err().to_string();
    assert!(error.starts_with("/nowhere/config.json: "), "{error}");
}
