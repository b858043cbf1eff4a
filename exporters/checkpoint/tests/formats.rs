//! The formats, from files that torch and safetensors wrote, undamaged and damaged in every position.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use densessm_checkpoint::{Checkpoint, Error};
use densessm_proto::DType;
use std::{
    collections::BTreeSet,
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
            assert_eq!(checkpoint.tensor(tensor).unwrap().dtype, dtype.into());
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
        assert!(error.ends_with("steps: expected fp32, fp16, bf16 or fp64, got int64"), "{error}");
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
fn reading_outside_of_a_tensor_is_an_error() {
    fn shared<T: Send + Sync>(value: T) -> T {
        value
    }
    let checkpoint = shared(opened("pytorch_model.bin", &fs::read(fixture("protocol-2.bin")).unwrap()).unwrap());
    for name in ["float", "turned"] {
        let tensor = checkpoint.tensor(name).unwrap();
        for (start, count) in [(0, 13), (12, 1), (13, 0), (usize::MAX, 2), (usize::MAX, 1)] {
            let error = checkpoint.read(tensor, start, &mut vec![0.0; count]).unwrap_err().to_string();
            assert!(
                error.ends_with(&format!("expected a part of its 12 elements, got {count} from {start} on")),
                "{error}"
            );
        }
    }
}

/// A safetensors file of one tensor, `w`.
fn one(dtype: safetensors::Dtype, shape: &[usize], data: &[u8]) -> Vec<u8> {
    let view = safetensors::tensor::TensorView::new(dtype, shape.to_vec(), data).unwrap();
    safetensors::serialize([("w", view)], None).unwrap()
}

#[test]
fn the_first_element_that_is_not_finite_is_named_as_it_is_stored() {
    let finite = 3.0_f64.to_le_bytes();
    for (value, shown) in
        [(f64::NAN, "NaN"), (f64::INFINITY, "inf"), (-1e39, "-1000000000000000000000000000000000000000")]
    {
        let data = [finite, finite, value.to_le_bytes(), f64::NAN.to_le_bytes()].concat();
        let checkpoint = opened("model.safetensors", &one(safetensors::Dtype::F64, &[2, 2], &data)).unwrap();
        let tensor = checkpoint.tensor("w").unwrap();
        checkpoint.read(tensor, 0, &mut [0.0; 2]).unwrap();
        let error = checkpoint.read(tensor, 1, &mut [0.0; 3]).unwrap_err().to_string();
        assert!(
            error.ends_with(&format!("model.safetensors: w: expected finite numbers, got {shown} at element 2")),
            "{error}"
        );
    }
}

#[test]
fn a_tensor_of_many_pieces_is_read_as_one() {
    // More than twice what is read at once, and no multiple of it.
    let numbers: Vec<f32> = (0..600_001).map(|i| i as f32).collect();
    let mut data: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    let checkpoint = opened("model.safetensors", &one(safetensors::Dtype::F32, &[600_001], &data)).unwrap();
    assert_eq!(all(&checkpoint, "w"), numbers);
    data[4 * 600_000..].copy_from_slice(&f32::INFINITY.to_le_bytes());
    let checkpoint = opened("model.safetensors", &one(safetensors::Dtype::F32, &[600_001], &data)).unwrap();
    let tensor = checkpoint.tensor("w").unwrap();
    let error = checkpoint.read(tensor, 7, &mut vec![0.0; 599_994]).unwrap_err().to_string();
    assert!(error.ends_with("got inf at element 600000"), "{error}");
}

#[test]
fn files_that_are_not_a_table_of_tensors_are_refused_with_a_remedy() {
    let error = |name: &str| opened("pytorch_model.bin", &fs::read(fixture(name)).unwrap()).unwrap_err().to_string();
    assert!(
        error("nested.bin")
            .contains("state_dict: expected a tensor, got a dictionary; save the model's state_dict alone")
    );
    assert!(
        error("module.bin").contains("`torch.nn.modules.linear.Linear` is not a class that a table of tensors needs")
    );
    assert!(error("legacy.bin").contains("torch older than 1.6; load it and torch.save it again"));
    assert!(opened("pytorch_model.bin", &fs::read(fixture("state-dict.bin")).unwrap()).is_ok());
}

/// Writes a file anew: over one that is there, some file systems wait for the disk.
fn replace(path: &Path, bytes: &[u8]) {
    fs::remove_file(path).unwrap();
    fs::write(path, bytes).unwrap();
}

/// The positions of an archive's bytes that belong to the pickle or to a storage of floats, or to their checksums.
fn checksummed(archive: &[u8]) -> BTreeSet<usize> {
    let mut zip = zip::ZipArchive::new(std::io::Cursor::new(archive)).unwrap();
    let mut positions = BTreeSet::new();
    for index in 0..zip.len() {
        let entry = zip.by_index(index).unwrap();
        let name = entry.name().unwrap().into_owned();
        // `steps` is the only tensor of integers, which are not read.
        let steps = name.ends_with("data/5");
        if name.ends_with("data.pkl") || name.ends_with("byteorder") || name.contains("/data/") && !steps {
            let (start, directory) = (entry.data_start().unwrap() as usize, entry.central_header_start() as usize);
            positions.extend(start..start + entry.size() as usize);
            positions.extend(directory + 16..directory + 20);
        }
    }
    positions
}

/// Opens damaged bytes and, where that goes well, reads every tensor of floats: an error is fine, a panic is not.
fn survives(folder: &TempDir, weights: &str, bytes: &[u8]) -> bool {
    replace(&folder.path().join(weights), bytes);
    let Ok(checkpoint) = Checkpoint::open(folder.path()) else { return false };
    checkpoint.tensors().filter(|tensor| tensor.dtype.float().is_some()).all(|tensor| {
        assert!(tensor.elements() <= 1 << 20, "a damaged file claims {:?}", tensor.shape);
        checkpoint.read(tensor, 0, &mut vec![0.0; tensor.elements()]).is_ok()
    })
}

#[test]
fn every_truncated_file_is_refused() {
    let golden = golden("mamba-m0-transformers").join("model.safetensors");
    for (weights, whole, step) in [
        ("model.safetensors", fs::read(golden).unwrap(), 1009),
        ("model.safetensors", one(safetensors::Dtype::F32, &[2, 3], &[0; 24]), 1),
        ("pytorch_model.bin", fs::read(fixture("protocol-2.bin")).unwrap(), 1),
    ] {
        let folder = folder(weights, &whole);
        assert!(Checkpoint::open(folder.path()).is_ok());
        for length in (0..whole.len()).step_by(step) {
            replace(&folder.path().join(weights), &whole[..length]);
            assert!(Checkpoint::open(folder.path()).is_err(), "{weights}: the first {length} bytes");
        }
    }
}

#[test]
fn shards_of_torch_files_are_one_checkpoint() {
    let folder = folder("1.bin", &fs::read(fixture("state-dict.bin")).unwrap());
    fs::copy(fixture("protocol-2.bin"), folder.path().join("2.bin")).unwrap();
    let second = ["float", "half", "bfloat16", "double", "turned", "tail", "tied", "parameter", "steps"];
    let map: Vec<String> = [("weight", "1.bin"), ("bias", "1.bin")]
        .into_iter()
        .chain(second.map(|name| (name, "2.bin")))
        .map(|(name, file)| format!("\"{name}\": \"{file}\""))
        .collect();
    let index = format!("{{\"metadata\": {{\"total_size\": 1}}, \"weight_map\": {{{}}}}}", map.join(", "));
    fs::write(folder.path().join("pytorch_model.bin.index.json"), index).unwrap();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(checkpoint.tensors().count(), 11);
    assert!(checkpoint.file(checkpoint.tensor("bias").unwrap()).ends_with("1.bin"));
    assert_eq!(all(&checkpoint, "tail"), all(&checkpoint, "float")[4..]);
}

#[test]
fn safetensors_are_preferred_where_both_are_there() {
    let folder = folder("pytorch_model.bin", &fs::read(fixture("protocol-2.bin")).unwrap());
    assert!(Checkpoint::open(folder.path()).unwrap().tensor("float").is_some());
    fs::write(folder.path().join("model.safetensors"), one(safetensors::Dtype::F32, &[2], &[0; 8])).unwrap();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(checkpoint.tensors().map(|tensor| tensor.name.as_str()).collect::<Vec<_>>(), ["w"]);
}

#[test]
fn a_flipped_byte_is_an_error_or_another_number_but_no_panic() {
    let whole = fs::read(fixture("protocol-2.bin")).unwrap();
    let torch = folder("pytorch_model.bin", &whole);
    let checksummed = checksummed(&whole);
    assert!(checksummed.len() > 763 + 48 + 24 + 24 + 96 + 48, "{} bytes have checksums", checksummed.len());
    for at in 0..whole.len() {
        for flip in [0x01, 0xff] {
            let mut damaged = whole.clone();
            damaged[at] ^= flip;
            let accepted = survives(&torch, "pytorch_model.bin", &damaged);
            assert!(!(accepted && checksummed.contains(&at)), "byte {at} is another and its checksum is not");
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
            let mut damaged = whole.clone();
            damaged[at] ^= flip;
            survives(&safe, "model.safetensors", &damaged);
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
