//! Snapshots: saved, loaded, refused, selected from and concatenated.

use crate::{MAMBA, RETNET, exported};
use densessm_session::{Bundle, HostTensor, Snapshot, Values};
use safetensors::{Dtype, tensor::TensorView};
use std::{collections::HashMap, fs, path::Path};

/// A snapshot of `batch` sequences in which every number is another.
fn snapshot(bundle: &Bundle, batch: usize) -> Snapshot {
    let mut next = 0.0;
    let mut number = || {
        next += 0.5;
        next
    };
    let tensors = bundle.states().into_iter().map(|state| {
        let values = (0..batch * state.elements()).map(|_| number()).collect();
        let shape = std::iter::once(batch).chain(state.shape).collect();
        (state.past, HostTensor { shape, values: Values::Float32(values) })
    });
    Snapshot::new(bundle.fingerprint(), (0..batch as i64).map(|row| 10 + row).collect(), tensors.collect())
}

/// The same snapshot with one tensor replaced.
fn with(snapshot: &Snapshot, bundle: &Bundle, name: &str, tensor: HostTensor) -> Snapshot {
    let mut tensors = snapshot.tensors().clone();
    tensors.insert(name.to_owned(), tensor);
    Snapshot::new(bundle.fingerprint(), snapshot.lengths().to_vec(), tensors)
}

#[test]
fn what_was_saved_is_loaded_to_the_bit() {
    for name in [MAMBA, RETNET] {
        let (folder, bundle) = exported(name);
        let mut saved = snapshot(&bundle, 3);
        saved.metadata_mut().insert("pending".to_owned(), "12 7 — ünïcode".to_owned());
        let path = folder.path().join("state");
        saved.save(&path).unwrap();
        let loaded = Snapshot::load(&path).unwrap();
        assert_eq!(loaded, saved);
        loaded.check(&bundle).unwrap();
        // A second one replaces it, and nothing is left beside it.
        let fewer = saved.select(&[1]).unwrap();
        fewer.save(&path).unwrap();
        assert_eq!(Snapshot::load(&path).unwrap(), fewer);
        let mut names: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["bundle", "state"]);
    }
}

#[test]
fn a_target_that_cannot_be_written_is_named_and_left_alone() {
    let (folder, bundle) = exported(MAMBA);
    let error = snapshot(&bundle, 1).save(&folder.path().join("nowhere/state")).unwrap_err().to_string();
    assert!(error.contains("nowhere/state: "), "{error}");
    let error = snapshot(&bundle, 1).save(bundle.dir()).unwrap_err().to_string();
    assert!(error.starts_with(&format!("{}: ", bundle.dir().display())), "{error}");
    bundle.verify().unwrap();
}

#[test]
fn selected_rows_concatenate_to_the_whole() {
    let (_folder, bundle) = exported(RETNET);
    let whole = snapshot(&bundle, 4);
    let rows: Vec<Snapshot> = (0..4).map(|row| whole.select(&[row]).unwrap()).collect();
    assert_eq!(Snapshot::concat(&rows).unwrap(), whole);
    let picked = whole.select(&[3, 1, 3]).unwrap();
    picked.check(&bundle).unwrap();
    assert_eq!(picked.lengths(), [13, 11, 13]);
    assert_eq!(picked, Snapshot::concat(&[rows[3].clone(), rows[1].clone(), rows[3].clone()]).unwrap());
    let error = whole.select(&[0, 4]).unwrap_err().to_string();
    assert_eq!(error, "rows: expected a row below 4, got 4");
    assert!(whole.select(&[]).unwrap().check(&bundle).is_err(), "no sequence is no batch");
}

#[test]
fn snapshots_of_different_models_are_not_joined() {
    let [(_one, mamba), (_two, retnet)] = [MAMBA, RETNET].map(exported);
    let parts = [snapshot(&mamba, 1), snapshot(&retnet, 1)];
    assert_eq!(Snapshot::concat(&parts).unwrap_err().to_string(), "states: expected snapshots of one model");
    assert_eq!(Snapshot::concat(&[]).unwrap_err().to_string(), "states: expected at least one snapshot");
    let scalar = HostTensor { shape: Vec::new(), values: Values::Float32(vec![1.0]) };
    let odd = with(&parts[0], &mamba, &mamba.states()[0].past, scalar);
    assert!(Snapshot::concat(&[odd.clone(), odd]).is_err());
}

#[test]
fn what_does_not_fit_a_model_is_named() {
    let (_folder, bundle) = exported(MAMBA);
    let sound = snapshot(&bundle, 2);
    sound.check(&bundle).unwrap();
    let name = &bundle.states()[1].past;
    let HostTensor { shape, values: Values::Float32(values) } = sound.tensors()[name].clone() else { panic!() };
    let check = |snapshot: Snapshot| snapshot.check(&bundle).unwrap_err().to_string();
    let replaced = |tensor: HostTensor| check(with(&sound, &bundle, name, tensor));

    let mut holed = values.clone();
    holed[5] = f32::NAN;
    let error = replaced(HostTensor { shape: shape.clone(), values: Values::Float32(holed) });
    assert_eq!(error, format!("{name}: expected finite numbers, got NaN at 5"));
    let error = replaced(HostTensor { shape: shape.clone(), values: Values::Int64(vec![0; values.len()]) });
    assert_eq!(error, format!("{name}: expected fp32 {shape:?}, got int64 {shape:?}"));
    let error = replaced(HostTensor { shape: shape.clone(), values: Values::Float32(values[1..].to_vec()) });
    assert!(error.starts_with(&format!("{name}: expected fp32 {shape:?}")), "{error}");
    let reversed: Vec<usize> = shape.iter().rev().copied().collect();
    let error = replaced(HostTensor { shape: reversed.clone(), values: Values::Float32(values) });
    assert_eq!(error, format!("{name}: expected fp32 {shape:?}, got fp32 {reversed:?}"));

    let extra = HostTensor { shape: vec![2], values: Values::Float32(vec![0.0; 2]) };
    let error = check(with(&sound, &bundle, "past_key_values.99.conv_state", extra));
    assert_eq!(error, "past_key_values.99.conv_state: expected the model's states only");
    let mut fewer = sound.tensors().clone();
    fewer.remove(name);
    assert_eq!(check(Snapshot::new(bundle.fingerprint(), vec![1, 2], fewer)), format!("{name}: missing"));
    for lengths in [vec![], vec![-1, 2], vec![1, i64::MAX]] {
        let error = check(Snapshot::new(bundle.fingerprint(), lengths, sound.tensors().clone()));
        assert!(error.starts_with("lengths: "), "{error}");
    }
    let (_other, retnet) = exported(RETNET);
    let error = check(snapshot(&retnet, 2));
    assert!(error.starts_with("states: expected those of model "), "{error}");
}

fn file(path: &Path, format: Option<&str>, tensors: &[(&str, Dtype, &[usize], &[u8])]) -> String {
    let views = tensors
        .iter()
        .map(|(name, dtype, shape, bytes)| (name.to_string(), TensorView::new(*dtype, shape.to_vec(), bytes).unwrap()));
    let metadata = format.map(|format| HashMap::from([("densessm.states".to_owned(), format.to_owned())]));
    fs::write(path, safetensors::serialize(views, metadata).unwrap()).unwrap();
    let error = Snapshot::load(path).err().map_or_else(|| "loaded".to_owned(), |error| error.to_string());
    error.replace(&format!("{}: ", path.display()), "")
}

#[test]
fn files_that_are_no_snapshots_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    let lengths = ("lengths", Dtype::I64, &[1][..], &[0; 8][..]);
    assert_eq!(file(&path, Some("1"), &[lengths]), "loaded");
    let no_state = "not a saved state: expected densessm.states 1 in its metadata";
    assert_eq!(file(&path, None, &[lengths]), no_state);
    assert_eq!(file(&path, Some("2"), &[lengths]), no_state);
    assert_eq!(file(&path, Some("1"), &[]), "lengths: expected a vector of I64");
    let square = ("lengths", Dtype::I64, &[1, 1][..], &[0; 8][..]);
    assert_eq!(file(&path, Some("1"), &[square]), "lengths: expected a vector of I64");
    let half = ("past", Dtype::F16, &[1][..], &[0; 2][..]);
    assert_eq!(file(&path, Some("1"), &[lengths, half]), "past: expected F32 or I64, got F16");
    for shape in [&[][..], &[2][..], &[0, 3][..]] {
        let bytes = vec![0; 4 * shape.iter().product::<usize>()];
        let error = file(&path, Some("1"), &[lengths, ("past", Dtype::F32, shape, &bytes)]);
        assert_eq!(error, format!("past: expected a state of each of 1 sequences, got shape {shape:?}"));
    }
}

#[test]
fn truncated_and_overwritten_files_are_errors_wherever_it_happens() {
    let (folder, bundle) = exported(MAMBA);
    let path = folder.path().join("state");
    snapshot(&bundle, 1).save(&path).unwrap();
    let bytes = fs::read(&path).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    for end in (0..header).chain([header + 1, bytes.len() - 1]) {
        fs::write(&path, &bytes[..end]).unwrap();
        assert!(Snapshot::load(&path).is_err(), "cut at {end}");
    }
    // Whatever a byte of the header is changed to, the file is refused or read, and what was read can be checked.
    for at in 0..header {
        let mut changed = bytes.clone();
        changed[at] = changed[at].wrapping_add(1);
        fs::write(&path, &changed).unwrap();
        if let Ok(loaded) = Snapshot::load(&path) {
            let _ = loaded.check(&bundle);
            let _ = loaded.select(&[0]);
            let _ = Snapshot::concat(&[loaded.clone(), loaded]);
        }
    }
    assert!(Snapshot::load(&folder.path().join("nothing")).unwrap_err().to_string().contains("nothing: "));
}
