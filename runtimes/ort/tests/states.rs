//! States on ONNX Runtime, call after call. The expected values come from `Model::run`, which takes and returns every
//! tensor by name and keeps nothing between two calls.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use densessm_bundle::{ExportOptions, export};
use densessm_checkpoint::Checkpoint;
use densessm_ort::OrtRuntime;
use densessm_proto::{
    GraphKind, LogitsMode, Precision, Tolerance, ToleranceClass,
    states::{INPUT_IDS, LOGITS, PAST_LENGTH, PRESENT_LENGTH},
};
use densessm_session::{Bundle, HostTensor, LoadOptions, Model, Runtime, Snapshot, States, TokenBatch, Values};
use std::{
    collections::BTreeMap,
    fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
};
use tempfile::TempDir;

const MODELS: [&str; 2] = ["densemamba-m2-both-gates", "denseretnet-m2-hub-layout-4-heads"];

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens").join(name)
}

fn exported(model: &Path) -> (TempDir, Bundle) {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("bundle");
    let options = ExportOptions::default().with_logits(LogitsMode::All);
    export(&Checkpoint::open(model).unwrap(), &out, &options, |_| ControlFlow::Continue(())).unwrap();
    let bundle = Bundle::open(&out).unwrap();
    (folder, bundle)
}

fn load(bundle: &Bundle) -> Box<dyn Model> {
    OrtRuntime
        .load(bundle, &LoadOptions::for_bundle(bundle))
        .unwrap_or_else(|error| panic!("{error}\n(tests/run fetches ONNX Runtime; on its own, set ORT_DYLIB_PATH)"))
}

fn floats(tensor: &HostTensor) -> &[f32] {
    match &tensor.values {
        Values::Float32(values) => values,
        other => panic!("expected floats, got {other:?}"),
    }
}

/// A sequence whose tensors are all passed by name.
struct ByName {
    carried: BTreeMap<String, HostTensor>,
}

impl ByName {
    /// Feeds rows of equal length and returns the logits of all their tokens.
    fn feed(&mut self, model: &mut dyn Model, graph: GraphKind, batch: usize, ids: &[i64]) -> Vec<f32> {
        let tokens = HostTensor { shape: vec![batch, ids.len() / batch], values: Values::Int64(ids.to_vec()) };
        self.carried.insert(INPUT_IDS.to_owned(), tokens);
        let mut outputs = model.run(graph, std::mem::take(&mut self.carried)).unwrap();
        let logits = outputs.remove(LOGITS).unwrap();
        for state in model.bundle().states() {
            self.carried.insert(state.past, outputs.remove(&state.present).unwrap());
        }
        if let Some(counter) = outputs.remove(PRESENT_LENGTH) {
            self.carried.insert(PAST_LENGTH.to_owned(), counter);
        }
        assert!(outputs.is_empty(), "{:?}", outputs.keys());
        floats(&logits).to_vec()
    }

    /// Compares with the states that the model keeps.
    fn assert_carried(&self, states: &States) {
        let snapshot = states.snapshot().unwrap();
        for (name, tensor) in snapshot.tensors() {
            assert_eq!(&self.carried[name], tensor, "{name}");
        }
        if let Some(counter) = self.carried.get(PAST_LENGTH) {
            assert_eq!(counter.values, Values::Int64(states.lengths().to_vec()));
        }
    }
}

/// Tokens that change every state.
fn tokens(count: usize, seed: usize) -> Vec<i64> {
    (0..count).map(|at| ((at * 31 + seed * 17 + at * at) % 90) as i64).collect()
}

#[test]
fn calls_in_any_mix_carry_what_the_graphs_return() {
    for name in MODELS {
        let (_folder, bundle) = exported(&golden(name));
        let mut model = load(&bundle);
        for batch in [1, 3] {
            let mut states = model.initial_states(batch).unwrap();
            let mut by_name = ByName { carried: BTreeMap::new() };
            for (call, width) in [1, 1, 5, 1, 2, 3, 1, 1, 1, 7, 1].into_iter().enumerate() {
                let ids = tokens(batch * width, call);
                let (graph, got) = if width == 1 {
                    (GraphKind::Recurrent, model.step(&ids, &mut states).unwrap())
                } else {
                    let lengths = vec![width; batch];
                    (
                        GraphKind::Parallel,
                        model.prefill(&TokenBatch::new(&ids, &lengths).unwrap(), &mut states).unwrap(),
                    )
                };
                let got = got.values.to_vec();
                assert_eq!(got, by_name.feed(&mut *model, graph, batch, &ids), "{name}, batch {batch}, call {call}");
                by_name.assert_carried(&states);
            }
        }
    }
}

#[test]
fn batches_of_different_sizes_alternate_on_one_model() {
    for name in MODELS {
        let (_folder, bundle) = exported(&golden(name));
        let mut model = load(&bundle);
        let mut sequences: Vec<(States, ByName)> = [2, 1, 2]
            .into_iter()
            .map(|batch| (model.initial_states(batch).unwrap(), ByName { carried: BTreeMap::new() }))
            .collect();
        for round in 0..5 {
            for (index, (states, by_name)) in sequences.iter_mut().enumerate() {
                let batch = states.batch();
                let ids = tokens(batch, round * 3 + index);
                let got = model.step(&ids, states).unwrap().values.to_vec();
                assert_eq!(got, by_name.feed(&mut *model, GraphKind::Recurrent, batch, &ids), "{name}, {index}");
            }
        }
        for (states, by_name) in &sequences {
            by_name.assert_carried(states);
        }
    }
}

#[test]
fn states_go_from_one_model_of_a_bundle_to_another_and_back() {
    for name in MODELS {
        let (_folder, bundle) = exported(&golden(name));
        let mut models = [load(&bundle), load(&bundle)];
        let mut states = models[0].initial_states(1).unwrap();
        let mut by_name = ByName { carried: BTreeMap::new() };
        for (call, at) in [0, 0, 1, 1, 0, 1, 0].into_iter().enumerate() {
            let ids = tokens(1, call);
            let model = &mut *models[at];
            let got = model.step(&ids, &mut states).unwrap().values.to_vec();
            assert_eq!(got, by_name.feed(model, GraphKind::Recurrent, 1, &ids), "{name}, call {call}");
        }
        // A model that made states may go before they do.
        let [first, mut second] = models;
        drop(first);
        second.step(&[5], &mut states).unwrap();
        drop(second);
        assert_eq!(states.snapshot().unwrap().lengths(), [8]);
    }
}

#[test]
fn states_of_the_same_shapes_but_other_weights_are_refused() {
    let (_folder, bundle) = exported(&golden(MODELS[0]));
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(golden(MODELS[0])).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    let shard = folder.path().join("model-00002-of-00002.safetensors");
    let mut bytes = fs::read(&shard).unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&0.25_f32.to_le_bytes());
    fs::write(&shard, bytes).unwrap();
    let (_other_folder, other) = exported(folder.path());

    let mut states = load(&other).initial_states(1).unwrap();
    let mut model = load(&bundle);
    let step = model.step(&[1], &mut states).unwrap_err().to_string();
    let prefill = model.prefill(&TokenBatch::new(&[1, 2], &[2]).unwrap(), &mut states).unwrap_err().to_string();
    assert_eq!([step.as_str(), prefill.as_str()], ["states: made by a model of another bundle"; 2]);
    assert_eq!(states.lengths(), [0]);
}

#[test]
fn a_call_that_fails_inside_the_runtime_leaves_the_states_as_they_were() {
    for name in MODELS {
        let (_folder, bundle) = exported(&golden(name));
        let mut states = load(&bundle).initial_states(1).unwrap();
        load(&bundle).prefill(&TokenBatch::new(&[3, 4, 5], &[3]).unwrap(), &mut states).unwrap();
        let before = states.snapshot().unwrap();

        // A manifest that knows one token more than the embedding does lets that token through to the graph.
        let path = bundle.dir().join("densessm.json");
        let vocabulary = bundle.architecture().vocab_size();
        let mut manifest: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        manifest["architecture"]["vocab_size"] = (vocabulary + 1).into();
        for graph in manifest["graphs"].as_array_mut().unwrap() {
            let outputs = graph["outputs"].as_array_mut().unwrap();
            let logits = outputs.iter_mut().find(|output| output["name"] == LOGITS).unwrap();
            logits["shape"][2] = (vocabulary + 1).into();
        }
        fs::write(&path, manifest.to_string()).unwrap();
        let mut model = load(&Bundle::open(bundle.dir()).unwrap());

        let token = vocabulary as i64;
        for round in 0..3 {
            let step = model.step(&[token], &mut states).unwrap_err().to_string();
            assert!(step.starts_with("ONNX Runtime: the recurrent graph: "), "{step}");
            let batch = [token, 1];
            let prefill = model.prefill(&TokenBatch::new(&batch, &[2]).unwrap(), &mut states).unwrap_err().to_string();
            assert!(prefill.starts_with("ONNX Runtime: the parallel graph: "), "{prefill}");
            assert_eq!(states.snapshot().unwrap(), before, "{name}, round {round}");
        }
    }
}

#[test]
fn a_snapshot_restored_twice_gives_independent_states() {
    for name in MODELS {
        let (_folder, bundle) = exported(&golden(name));
        let mut model = load(&bundle);
        let mut states = model.initial_states(2).unwrap();
        model.prefill(&TokenBatch::new(&[3, 4, 5, 6, 0, 0], &[3, 1]).unwrap(), &mut states).unwrap();
        let saved = states.snapshot().unwrap();
        let mut left = model.restore(&saved).unwrap();
        let mut right = model.restore(&saved.select(&[1]).unwrap()).unwrap();
        model.step(&[7, 8], &mut left).unwrap();
        model.step(&[9], &mut right).unwrap();
        let same = model.step(&[7, 9], &mut states).map(|logits| logits.values.to_vec()).unwrap();
        assert!(same.iter().all(|logit| logit.is_finite()));
        let joined = [left.snapshot().unwrap().select(&[0]).unwrap(), right.snapshot().unwrap()];
        let (joined, whole) = (Snapshot::concat(&joined).unwrap(), states.snapshot().unwrap());
        assert_eq!(joined.lengths(), [4, 2]);
        for (name, tensor) in whole.tensors() {
            // One row alone goes through other matrix products than two together.
            let tolerance = Tolerance::of(ToleranceClass::Projection, Precision::Fp32);
            let compared = tolerance.compare(floats(&joined.tensors()[name]), floats(tensor));
            compared.unwrap_or_else(|error| panic!("{name}: {error}"));
        }
    }
}

#[test]
fn a_graph_that_was_not_loaded_is_named() {
    let (_folder, bundle) = exported(&golden(MODELS[0]));
    let options = LoadOptions::for_bundle(&bundle).with_graphs([GraphKind::Recurrent]);
    let mut model = OrtRuntime.load(&bundle, &options).unwrap();
    let mut states = model.initial_states(1).unwrap();
    let error = model.prefill(&TokenBatch::new(&[1, 2], &[2]).unwrap(), &mut states).unwrap_err().to_string();
    assert!(error.contains("parallel") && error.contains("not loaded"), "{error}");
    model.step(&[1], &mut states).unwrap();
}

#[test]
fn a_model_of_no_graph_or_no_thread_is_not_loaded() {
    let (_folder, bundle) = exported(&golden(MODELS[0]));
    let all = LoadOptions::for_bundle(&bundle);
    let error = |options: LoadOptions| OrtRuntime.load(&bundle, &options).err().unwrap().to_string();
    assert_eq!(error(all.clone().with_graphs([])), "graphs: expected a graph to load, got none");
    assert_eq!(error(all.with_threads(0)), "threads: expected at least 1, got 0");
}
