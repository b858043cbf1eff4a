//! Real checkpoints, exported in both lowerings, against logits made by PyTorch.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use densessm_bundle::{ExportOptions, export};
use densessm_checkpoint::Checkpoint;
use densessm_proto::{GraphKind, LogitsMode, Lowering, Precision, Tolerance, ToleranceClass};
use densessm_session::{Bundle, HostTensor, LoadOptions, Model, Runtime, States, TokenBatch, Values};
use safetensors::SafeTensors;
use std::{
    collections::BTreeMap,
    fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
};

/// How far an fp32 logit may be off.
const LOGITS: Tolerance = Tolerance::of(ToleranceClass::Logits, Precision::Fp32);

/// Every folder of checkpoints that carries its logits.
fn folders() -> Vec<PathBuf> {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests");
    let mut folders: Vec<PathBuf> = ["goldens", "checkpoints"]
        .iter()
        .flat_map(|name| fs::read_dir(tests.join(name)).unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("golden.safetensors").is_file())
        .collect();
    folders.sort();
    assert!(folders.len() >= 9, "{folders:?}");
    folders
}

struct Golden {
    ids: Vec<i64>,
    lengths: Vec<usize>,
    width: usize,
    vocabulary: usize,
    logits: Vec<f32>,
}

impl Golden {
    fn read(folder: &Path) -> Self {
        let bytes = fs::read(folder.join("golden.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let words = |name: &str| file.tensor(name).unwrap().data().to_vec();
        let logits = file.tensor("logits").unwrap();
        Self {
            ids: words("input_ids").as_chunks().0.iter().map(|&b| i64::from_le_bytes(b)).collect(),
            lengths: words("sequence_lengths").as_chunks().0.iter().map(|&b| i32::from_le_bytes(b) as usize).collect(),
            width: logits.shape()[1],
            vocabulary: logits.shape()[2],
            logits: logits.data().as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
        }
    }

    fn row(&self, row: usize) -> &[i64] {
        &self.ids[row * self.width..][..self.lengths[row]]
    }

    fn logits(&self, row: usize, token: usize) -> &[f32] {
        &self.logits[(row * self.width + token) * self.vocabulary..][..self.vocabulary]
    }

    fn check(&self, what: &str, row: usize, token: usize, got: &[f32]) {
        let compared = LOGITS.compare(got, self.logits(row, token));
        compared.unwrap_or_else(|error| panic!("{what}: row {row}, token {token}: {error}"));
    }
}

fn feed(model: &mut dyn Model, golden: &Golden, what: &str, states: &mut States, row: usize, piece: (usize, usize)) {
    let (start, end) = piece;
    let tokens = &golden.row(row)[start..end];
    let logits = match tokens {
        [token] if start % 2 == 1 => model.step(&[*token], states).unwrap(),
        _ => model.prefill(&TokenBatch::new(tokens, &[tokens.len()]).unwrap(), states).unwrap(),
    };
    golden.check(what, row, end - 1, logits.last(0, tokens.len()));
}

fn in_every_way(model: &mut dyn Model, golden: &Golden, what: &str) {
    let rows = golden.lengths.len();
    let batch = TokenBatch::new(&golden.ids, &golden.lengths).unwrap();

    let mut states = model.initial_states(rows).unwrap();
    let logits = model.prefill(&batch, &mut states).unwrap();
    for (row, &length) in golden.lengths.iter().enumerate() {
        let every = if logits.positions == 1 { length - 1..length } else { 0..length };
        for token in every {
            golden.check(what, row, token, logits.last(row, token + 1));
        }
    }

    // The ragged states continue as those of the rows alone.
    let next = vec![1; rows];
    let together = model.step(&next, &mut states).unwrap().values.to_vec();
    for row in 0..rows {
        let mut alone = model.initial_states(1).unwrap();
        let tokens = golden.row(row);
        model.prefill(&TokenBatch::new(tokens, &[tokens.len()]).unwrap(), &mut alone).unwrap();
        let mut restored = model.restore(&alone.snapshot().unwrap()).unwrap();
        let logits = model.step(&[1], &mut restored).unwrap();
        let compared = LOGITS.compare(logits.at(0, 0), &together[row * golden.vocabulary..][..golden.vocabulary]);
        compared.unwrap_or_else(|error| panic!("{what}: row {row} alone: {error}"));
    }

    let mut states = model.initial_states(1).unwrap();
    for (token, &id) in golden.row(0).iter().enumerate() {
        let logits = model.step(&[id], &mut states).unwrap();
        golden.check(what, 0, token, logits.at(0, 0));
    }

    let mut states = model.initial_states(1).unwrap();
    let (mut start, length) = (0, golden.lengths[0]);
    for size in [1, 1, 5, 1, 2, 16, 1, 1, length] {
        let end = (start + size).min(length);
        if start < end {
            feed(model, golden, what, &mut states, 0, (start, end));
            start = end;
        }
    }
    assert_eq!(states.lengths(), [length as i64]);

    // Counters beyond 32 bits survive, where there are counters.
    let far = 1_i64 << 33;
    let inputs = BTreeMap::from([
        ("input_ids".to_owned(), HostTensor { shape: vec![1, 2], values: Values::Int64(vec![1, 2]) }),
        ("past_length".to_owned(), HostTensor { shape: vec![1], values: Values::Int64(vec![far]) }),
    ]);
    let counts = model.bundle().architecture().counts_positions();
    match model.run(GraphKind::Parallel, inputs) {
        Ok(outputs) => assert_eq!(outputs["present_length"].values, Values::Int64(vec![far + 2])),
        Err(error) => assert!(!counts, "{what}: {error}"),
    }
}

#[test]
fn exported_checkpoints_agree_with_pytorch_in_both_lowerings() {
    for folder in folders() {
        let golden = Golden::read(&folder);
        let checkpoint = Checkpoint::open(&folder).unwrap();
        for (lowering, logits) in [(Lowering::Function, LogitsMode::Last), (Lowering::Inline, LogitsMode::All)] {
            let dir = tempfile::tempdir().unwrap();
            let options = ExportOptions::default().with_lowering(lowering).with_logits(logits);
            export(&checkpoint, &dir.path().join("bundle"), &options, |_| ControlFlow::Continue(())).unwrap();
            let bundle = Bundle::open(&dir.path().join("bundle")).unwrap();
            let what = format!("{}, {lowering}", folder.display());
            let mut model = densessm_tract::TractRuntime
                .load(&bundle, &LoadOptions::for_bundle(&bundle))
                .unwrap_or_else(|error| panic!("{what}: {error}"));
            in_every_way(model.as_mut(), &golden, &what);
        }
    }
}
