//! The reference against PyTorch's numbers, against itself in its two forms, and against the trained checkpoints' texts.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use densessm_proto::tolerance::{REFERENCE_F32, REFERENCE_F64, REFERENCE_GOLDENS, Tolerance};
use densessm_reference::{Real, Reference, State, Tensors};
use ndarray::{Array2, ArrayView1, Axis, concatenate};
use safetensors::SafeTensors;
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
};

fn models(kind: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests").join(kind);
    let mut found: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.sort();
    found
}

/// Opens a checkpoint; pickles are read by the exporter's reader, whose business they are.
fn open(model: &Path) -> Reference {
    if !model.join("pytorch_model.bin").is_file() && !model.join("pytorch_model.bin.index.json").is_file() {
        return Reference::open(model).unwrap();
    }
    let checkpoint = densessm_checkpoint::Checkpoint::open(model).unwrap();
    let tensors = checkpoint.tensors().map(|tensor| {
        let mut values = vec![0.0; tensor.shape.iter().product()];
        checkpoint.read(tensor, 0, &mut values).unwrap();
        (tensor.name.clone(), tensor.shape.clone(), values)
    });
    let config = serde_json::from_slice(&fs::read(model.join("config.json")).unwrap()).unwrap();
    Reference::new(&config, Tensors::new(tensors).unwrap()).unwrap()
}

struct Golden {
    ids: Vec<Vec<i64>>,
    logits: Vec<Array2<f32>>,
}

impl Golden {
    /// Rows up to their lengths.
    fn open(model: &Path) -> Self {
        let bytes = fs::read(model.join("golden.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let integers = |name: &str| -> (Vec<usize>, Vec<i64>) {
            let tensor = tensors.tensor(name).unwrap();
            let wide = tensor.data().len() == 8 * tensor.shape().iter().product::<usize>();
            let numbers = match wide {
                true => tensor.data().as_chunks().0.iter().map(|&b| i64::from_le_bytes(b)).collect(),
                false => tensor.data().as_chunks().0.iter().map(|&b| i32::from_le_bytes(b).into()).collect(),
            };
            (tensor.shape().to_vec(), numbers)
        };
        let ((shape, ids), (_, lengths)) = (integers("input_ids"), integers("sequence_lengths"));
        let logits = tensors.tensor("logits").unwrap();
        let numbers: Vec<f32> = logits.data().as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
        let vocabulary = logits.shape()[2];
        let row = |row: usize| &ids[row * shape[1]..][..lengths[row] as usize];
        let of_row = |row: usize| {
            let numbers = &numbers[row * shape[1] * vocabulary..][..lengths[row] as usize * vocabulary];
            Array2::from_shape_vec((lengths[row] as usize, vocabulary), numbers.to_vec()).unwrap()
        };
        Self { ids: (0..shape[0]).map(|i| row(i).to_vec()).collect(), logits: (0..shape[0]).map(of_row).collect() }
    }
}

#[track_caller]
fn close<F: Real, G: Real>(got: &Array2<F>, expected: &Array2<G>, tolerance: Tolerance, what: &str) {
    assert_eq!(got.dim(), expected.dim(), "{what}");
    let [got, expected] =
        [got.iter().map(|x| x.wide()).collect::<Vec<f64>>(), expected.iter().map(|x| x.wide()).collect()];
    tolerance.compare(&got, &expected).unwrap_or_else(|error| panic!("{what}: {error}"));
}

fn agrees<F: Real>(tolerance_of_forms: Tolerance, goldens: Tolerance) {
    for model in models("goldens").into_iter().chain(models("checkpoints")) {
        let (reference, golden) = (open(&model), Golden::open(&model));
        for (ids, expected) in golden.ids.iter().zip(&golden.logits) {
            let name = model.file_name().unwrap().display();
            let mut state = reference.initial_state::<F>();
            let parallel = reference.parallel(ids, &mut state, &mut ());
            close(&parallel, expected, goldens, &format!("{name}, parallel"));

            let mut stepped = reference.initial_state::<F>();
            let steps: Vec<_> = ids.iter().map(|&id| reference.recurrent(id, &mut stepped, &mut ())).collect();
            let rows: Vec<_> = steps.iter().map(|row| row.view().insert_axis(Axis(0))).collect();
            close(&concatenate(Axis(0), &rows).unwrap(), &parallel, tolerance_of_forms, &format!("{name}, recurrent"));
            same_state(&stepped, &state, tolerance_of_forms, &format!("{name}, states of the two forms"));

            for cut in [1, 3, ids.len() / 2].into_iter().filter(|&cut| cut < ids.len()) {
                let mut state = reference.initial_state::<F>();
                let pieces = [&ids[..cut], &ids[cut..]].map(|ids| reference.parallel(ids, &mut state, &mut ()));
                let joined = concatenate(Axis(0), &pieces.each_ref().map(|piece| piece.view())).unwrap();
                close(&joined, &parallel, tolerance_of_forms, &format!("{name}, cut at {cut}"));
            }
        }
    }
}

#[track_caller]
fn same_state<F: Real>(got: &State<F>, expected: &State<F>, tolerance: Tolerance, what: &str) {
    assert_eq!(got.position, expected.position, "{what}");
    assert_eq!(got.tensors.len(), expected.tensors.len(), "{what}");
    for (name, expected) in &expected.tensors {
        let flat = |tensor: &ndarray::ArrayD<F>| {
            Array2::from_shape_vec((1, tensor.len()), tensor.iter().copied().collect()).unwrap()
        };
        close(&flat(&got.tensors[name]), &flat(expected), tolerance, &format!("{what}: {name}"));
    }
}

#[test]
fn in_f64_it_agrees_with_pytorch_and_its_forms_with_each_other() {
    agrees::<f64>(REFERENCE_F64, REFERENCE_GOLDENS);
}

#[test]
fn in_f32_it_agrees_with_pytorch_and_its_forms_with_each_other() {
    agrees::<f32>(REFERENCE_F32, REFERENCE_F32);
}

#[test]
fn long_calls_are_cut_into_chunks_that_join() {
    for model in models("goldens") {
        let reference = open(&model);
        let ids: Vec<i64> = (0..300).map(|i| (i * 7 + 3) % reference.vocabulary() as i64).collect();
        let mut whole = reference.initial_state::<f64>();
        let expected = reference.parallel(&ids, &mut whole, &mut ());
        let mut state = reference.initial_state::<f64>();
        let pieces: Vec<_> = ids.chunks(37).map(|ids| reference.parallel(ids, &mut state, &mut ())).collect();
        let views: Vec<_> = pieces.iter().map(|piece| piece.view()).collect();
        close(&concatenate(Axis(0), &views).unwrap(), &expected, REFERENCE_F64, &model.display().to_string());
        same_state(&state, &whole, REFERENCE_F64, &model.display().to_string());
    }
}

#[test]
fn trained_checkpoints_say_what_they_said_in_pytorch() {
    for model in models("checkpoints") {
        let greedy: Value = serde_json::from_slice(&fs::read(model.join("greedy.json")).unwrap()).unwrap();
        let ids: Vec<i64> = greedy["token_ids"].as_array().unwrap().iter().map(|id| id.as_i64().unwrap()).collect();
        let prompt = greedy["prompt_tokens"].as_u64().unwrap() as usize;
        let reference = open(&model);
        let mut state = reference.initial_state::<f64>();
        let argmax = |row: ArrayView1<'_, f64>| {
            row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map(|(id, _)| id as i64).unwrap()
        };
        let logits = reference.parallel(&ids[..prompt], &mut state, &mut ());
        let mut token = argmax(logits.row(prompt - 1));
        for &expected in &ids[prompt..] {
            assert_eq!(token, expected, "{}", model.display());
            token = argmax(reference.recurrent(token, &mut state, &mut ()).view());
        }
    }
}

#[test]
fn what_does_not_fit_is_named() {
    let model = &models("goldens")[0];
    let config: Value = serde_json::from_slice(&fs::read(model.join("config.json")).unwrap()).unwrap();
    let error = Reference::new(&config, Tensors::default()).unwrap_err().to_string();
    assert!(error.contains("backbone.embedding") && error.contains("got no tensor"), "{error}");
    let mut other = config.clone();
    other["model_type"] = "gpt2".into();
    let error = Reference::new(&other, Tensors::open(model).unwrap()).unwrap_err().to_string();
    assert!(error.starts_with("config.json: model_type: expected mamba"), "{error}");
    other = config;
    other["state_size"] = 7.into();
    let error = Reference::new(&other, Tensors::open(model).unwrap()).unwrap_err().to_string();
    assert!(error.contains("x_proj.weight: expected shape"), "{error}");
}
