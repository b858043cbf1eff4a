//! A whole bundle, small enough to be worked out by hand.
//!
//! One layer, D = 2, N = 1, no convolution state (K = 1). The recurrent graph is a local function:
//! `state ← state + embedding(token)`, `logits = state wᵀ` with `w` in the data file.

use super::build::*;
use crate::{TractRuntime, VERSION};
use densessm_proto::{
    Architecture, DType, DenseMamba, FileEntry, GraphEntry, GraphKind, LogitsMode, Lowering, Manifest, Precision,
    Projection, StateTensor, TensorEntry,
    manifest::{Dimension, FORMAT_VERSION, MANIFEST_FILE, WEIGHTS_FILE},
    onnx::{ModelProto, StringStringEntryProto, TensorProto, tensor_proto::DataLocation, tensor_proto::DataType},
    states,
};
use densessm_session::{
    Bundle, Device, Error, HostTensor, LoadOptions, Model, Runtime, StatesError, TokenBatch, UnusableReason, Values,
};
use prost::Message;
use std::{collections::BTreeMap, fs, path::Path};
use tempfile::TempDir;

const EMBEDDING: [f32; 6] = [1.0, 0.0, 0.0, 1.0, 2.0, 3.0];

fn architecture() -> Architecture {
    Architecture::DenseMamba(DenseMamba {
        vocab_size: 3,
        hidden_size: 1,
        num_hidden_layers: 1,
        intermediate_size: 2,
        state_size: 1,
        conv_kernel: 1,
        time_step_rank: 1,
        use_bias: false,
        use_conv_bias: false,
        layer_norm_epsilon: 1e-5,
        tie_word_embeddings: true,
        dense_block_layers: 0,
        channel_gate: None,
        state_gate: None,
        dense_projection: Projection::Identity,
    })
}

fn state() -> StateTensor {
    states::layout(&architecture()).remove(0)
}

fn recurrent() -> ModelProto {
    let (past, present) = (state().past, state().present);
    let step = function(
        "Step",
        &["e", "s", "axes"],
        &["n"],
        vec![node("Unsqueeze", &["e", "axes"], &["column"]), node("Add", &["s", "column"], &["n"])],
    );
    let entry = |key: &str, value: &str| StringStringEntryProto { key: key.to_owned(), value: value.to_owned() };
    let weight = TensorProto {
        name: "w".to_owned(),
        dims: vec![2, 3],
        data_type: DataType::Float.into(),
        data_location: DataLocation::External.into(),
        external_data: vec![entry("location", WEIGHTS_FILE), entry("offset", "0"), entry("length", "24")],
        ..TensorProto::default()
    };
    let nodes = vec![
        node("Gather", &["embedding", "input_ids"], &["embedded"]),
        node("Squeeze", &["embedded", "axis1"], &["row"]),
        call("Step", &["row", &past, "axes"], &[&present]),
        node("Squeeze", &[&present, "axes"], &["flat"]),
        node("MatMul", &["flat", "w"], &["scores"]),
        node("Unsqueeze", &["scores", "axis1"], &["logits"]),
    ];
    let constants = vec![
        floats("embedding", &[3, 2], &EMBEDDING),
        integers("axis1", &[1], &[1]),
        integers("axes", &[1], &[2]),
        weight,
    ];
    let inputs =
        vec![value("input_ids", DataType::Int64, &["batch", "1"]), value(&past, DataType::Float, &["batch", "2", "1"])];
    let outputs = vec![
        value("logits", DataType::Float, &["batch", "1", "3"]),
        value(&present, DataType::Float, &["batch", "2", "1"]),
    ];
    model(graph(inputs, outputs, constants, nodes), vec![step])
}

fn manifest(files: Vec<FileEntry>) -> Manifest {
    let entry = |name: &str, dtype, tail: &[usize]| TensorEntry {
        name: name.to_owned(),
        dtype,
        shape: std::iter::once(Dimension::Symbol("batch".to_owned()))
            .chain(tail.iter().map(|&size| Dimension::Size(size)))
            .collect(),
    };
    Manifest {
        format_version: FORMAT_VERSION,
        tool_version: "0".to_owned(),
        architecture: architecture(),
        precision: Precision::Fp32,
        opset: OPSET,
        lowering: Lowering::Function,
        logits: LogitsMode::Last,
        graphs: vec![GraphEntry {
            kind: GraphKind::Recurrent,
            file: GraphKind::Recurrent.file().to_owned(),
            activations: DType::F32,
            fused: false,
            inputs: vec![entry("input_ids", DType::I64, &[1]), state().entry(&state().past)],
            outputs: vec![entry("logits", DType::F32, &[1, 3]), state().entry(&state().present)],
        }],
        state_bytes_per_sequence: 8,
        files,
    }
}

/// Writes the bundle with this graph.
fn write(dir: &Path, recurrent: &ModelProto) -> Bundle {
    let identity: Vec<u8> = [1_f32, 0.0, 1.0, 0.0, 1.0, 1.0].iter().flat_map(|w| w.to_le_bytes()).collect();
    let files = [(GraphKind::Recurrent.file(), recurrent.encode_to_vec()), (WEIGHTS_FILE, identity)];
    let entries = files.iter().map(|(name, bytes)| {
        fs::write(dir.join(name), bytes).unwrap();
        FileEntry { name: (*name).to_owned(), size: bytes.len() as u64, sha256: "fingerprint".to_owned() }
    });
    let manifest = manifest(entries.collect());
    fs::write(dir.join(MANIFEST_FILE), serde_json::to_vec(&manifest).unwrap()).unwrap();
    Bundle::open(dir).unwrap()
}

fn loaded() -> (TempDir, Box<dyn Model>) {
    let dir = tempfile::tempdir().unwrap();
    let bundle = write(dir.path(), &recurrent());
    let model = TractRuntime.load(&bundle, &LoadOptions::for_bundle(&bundle)).unwrap();
    (dir, model)
}

fn refused(graph: &ModelProto) -> String {
    let dir = tempfile::tempdir().unwrap();
    let bundle = write(dir.path(), graph);
    TractRuntime.load(&bundle, &LoadOptions::for_bundle(&bundle)).err().expect("the graph is broken").to_string()
}

#[test]
fn steps_move_the_states_on_and_lend_the_logits() {
    let (_dir, mut model) = loaded();
    let mut states = model.initial_states(2).unwrap();
    let logits = model.step(&[0, 2], &mut states).unwrap();
    assert_eq!((logits.positions, logits.vocabulary), (1, 3));
    assert_eq!(logits.at(0, 0), [1.0, 0.0, 1.0]);
    assert_eq!(logits.at(1, 0), [2.0, 3.0, 5.0]);
    let logits = model.step(&[1, 1], &mut states).unwrap();
    assert_eq!(logits.values, [1.0, 1.0, 2.0, 2.0, 4.0, 6.0]);
    assert_eq!(states.lengths(), [2, 2]);
}

#[test]
fn a_fork_and_a_snapshot_are_independent_of_their_original() {
    let (_dir, mut model) = loaded();
    let mut states = model.initial_states(1).unwrap();
    model.step(&[0], &mut states).unwrap();
    let (mut fork, snapshot) = (states.fork().unwrap(), states.snapshot().unwrap());
    model.step(&[2], &mut states).unwrap();
    assert_eq!(model.step(&[1], &mut fork).unwrap().values, [1.0, 1.0, 2.0]);
    let mut restored = model.restore(&snapshot).unwrap();
    assert_eq!(restored.lengths(), [1]);
    assert_eq!(model.step(&[1], &mut restored).unwrap().values, [1.0, 1.0, 2.0]);
    assert_eq!(model.step(&[1], &mut states).unwrap().values, [3.0, 4.0, 7.0]);
}

#[test]
fn rows_join_leave_and_are_copied() {
    let (_dir, mut model) = loaded();
    let mut batch = model.initial_states(0).unwrap();
    assert!(model.step(&[], &mut batch).is_err(), "a batch without rows cannot be fed");
    for token in [0, 1, 2] {
        let mut row = model.initial_states(1).unwrap();
        model.step(&[token], &mut row).unwrap();
        batch.join(&row).unwrap();
    }
    // The states are now the embeddings of the tokens, and a step adds one to each.
    assert_eq!(batch.lengths(), [1, 1, 1]);
    batch.swap_remove(0).unwrap();
    let mut copies = batch.select(&[1, 0, 1]).unwrap();
    let logits = model.step(&[0, 0, 1], &mut copies).unwrap();
    assert_eq!(logits.values, [1.0, 1.0, 2.0, 3.0, 3.0, 6.0, 0.0, 2.0, 2.0]);
    assert!(matches!(batch.swap_remove(2), Err(Error::States(StatesError::Row { row: 2, batch: 2 }))));
    batch.join_rows(&copies, &[1]).unwrap();
    assert_eq!(batch.lengths(), [1, 1, 2]);
    assert_eq!(model.step(&[0, 0, 0], &mut batch).unwrap().at(2, 0), [4.0, 3.0, 7.0]);
}

#[test]
fn a_call_that_fails_leaves_the_states_as_they_were() {
    let (_dir, mut model) = loaded();
    let mut states = model.initial_states(1).unwrap();
    model.step(&[0], &mut states).unwrap();
    for (tokens, word) in
        [(&[3][..], "expected an id"), (&[-1], "expected an id"), (&[0, 1], "expected 1 rows"), (&[], "rows")]
    {
        let error = model.step(tokens, &mut states).unwrap_err();
        assert!(matches!(error, Error::Input { .. }) && error.to_string().contains(word), "{error}");
    }
    let batch = TokenBatch::new(&[0], &[1]).unwrap();
    assert!(matches!(model.prefill(&batch, &mut states), Err(Error::NotLoaded { graph: GraphKind::Parallel })));
    assert_eq!(states.lengths(), [1]);
    assert_eq!(model.step(&[1], &mut states).unwrap().values, [1.0, 1.0, 2.0]);
}

#[test]
fn run_takes_and_gives_tensors_by_name() {
    let (_dir, mut model) = loaded();
    let ids = HostTensor { shape: vec![2, 1], values: Values::Int64(vec![1, 2]) };
    let outputs = model.run(GraphKind::Recurrent, BTreeMap::from([("input_ids".to_owned(), ids)])).unwrap();
    let present = HostTensor { shape: vec![2, 2, 1], values: Values::Float32(vec![0.0, 1.0, 2.0, 3.0]) };
    assert_eq!(outputs[&state().present], present);
    assert_eq!(outputs["logits"].shape, [2, 1, 3]);
    assert!(model.run(GraphKind::Recurrent, BTreeMap::new()).is_err());
}

#[test]
fn threads_change_nothing_but_none_at_all_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = write(dir.path(), &recurrent());
    let options = |threads| LoadOptions::for_bundle(&bundle).with_threads(threads);
    for threads in [1, 2] {
        let mut model = TractRuntime.load(&bundle, &options(threads)).unwrap();
        let mut states = model.initial_states(1).unwrap();
        assert_eq!(model.step(&[2], &mut states).unwrap().values, [2.0, 3.0, 5.0]);
    }
    assert!(matches!(TractRuntime.load(&bundle, &options(0)), Err(Error::Input { name, .. }) if name == "threads"));
}

#[test]
fn only_the_processor_is_usable() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = write(dir.path(), &recurrent());
    let info = TractRuntime.availability(Device::CPU).unwrap();
    assert_eq!((info.version, info.device, info.library), (VERSION, Device::CPU, None));
    for device in [Device::CUDA, Device::tensorrt(1)] {
        let unusable = TractRuntime.availability(device).unwrap_err();
        assert_eq!((unusable.device, &unusable.reason), (device, &UnusableReason::CpuOnly));
        let options = LoadOptions::for_bundle(&bundle).with_device(device);
        let error = TractRuntime.load(&bundle, &options).err().unwrap();
        assert!(matches!(&error, Error::Unusable(same) if *same == unusable), "{error}");
        assert!(error.to_string().contains(&device.to_string()), "{error}");
    }
}

#[test]
fn the_version_told_is_the_one_built_in() {
    let lock = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../Cargo.lock")).unwrap();
    assert!(lock.contains(&format!("name = \"tract-core\"\nversion = \"{}\"\n", VERSION)));
}

#[test]
fn graphs_that_are_broken_or_reach_elsewhere_are_refused() {
    let changed = |change: fn(&mut ModelProto)| {
        let mut model = recurrent();
        change(&mut model);
        refused(&model)
    };
    let elsewhere = |model: &mut ModelProto, location: &str| {
        model.graph.as_mut().unwrap().initializer[3].external_data[0].value = location.to_owned();
    };
    let mut outside = recurrent();
    elsewhere(&mut outside, "../model.onnx.data");
    let mut missing = recurrent();
    elsewhere(&mut missing, "other.data");
    for (problem, word) in [
        (refused(&outside), "beside the graph"),
        (refused(&missing), "other.data"),
        (changed(|model| model.graph = None), "no graph"),
        (changed(|model| model.functions.clear()), "Step"),
        (changed(|model| model.functions.push(model.functions[0].clone())), "defined twice"),
        (changed(|model| model.graph.as_mut().unwrap().output.truncate(1)), "as the manifest says"),
        (changed(|model| model.graph.as_mut().unwrap().node[4].input[1] = "ghost".to_owned()), "ghost"),
        (
            changed(|model| model.graph.as_mut().unwrap().initializer[3].external_data[2].value = "-4".to_owned()),
            "length",
        ),
        (
            changed(|model| model.graph.as_mut().unwrap().initializer[3].external_data[1].value = "99".to_owned()),
            "99..123",
        ),
        (changed(|model| model.graph.as_mut().unwrap().initializer[3].dims = vec![i64::MAX, 3]), "recurrent.onnx"),
        (changed(|model| model.graph.as_mut().unwrap().initializer[0].data_type = 9999), "9999"),
        (changed(|model| model.graph.as_mut().unwrap().initializer[0].raw_data.truncate(5)), "recurrent.onnx"),
    ] {
        assert!(problem.contains(word) && !problem.contains('\n'), "{problem}");
    }
}

#[test]
fn files_cut_short_at_any_byte_are_errors() {
    let bytes = recurrent().encode_to_vec();
    for length in (0..bytes.len()).step_by(7) {
        let dir = tempfile::tempdir().unwrap();
        let bundle = write(dir.path(), &recurrent());
        fs::write(dir.path().join(GraphKind::Recurrent.file()), &bytes[..length]).unwrap();
        assert!(TractRuntime.load(&bundle, &LoadOptions::for_bundle(&bundle)).is_err(), "{length} bytes");
    }
}
