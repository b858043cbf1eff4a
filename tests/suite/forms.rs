//! Every execution mode of every family compared with the reference: prompt lengths around the block sizes of kernels and
//! chunks, batches, every split of a prompt between the two graphs, states saved and restored.

use crate::{
    bundles::{exported, golden},
    table::{Row, Tolerance, rows},
};
use densessm::{Checkpoint, ExportOptions, Model, Snapshot, States, TokenBatch, Values, parity};
use densessm_reference::{Reference, State};
use ndarray::Array2;

/// Convolutions here have 3 and 4 taps, chunks of the kernels 16 and 64 tokens, those of the reference 64 and 256.
const LENGTHS: [usize; 12] = [1, 2, 3, 4, 15, 17, 63, 64, 65, 128, 256, 300];
/// Several chunks in every implementation.
const LONG: [usize; 2] = [1024, 2048];
const MODELS: [&str; 6] = [
    "mamba-m0-transformers",
    "densemamba-m2-both-gates",
    "densemamba-m3-state-gate-linear-untied",
    "denseretnet-m2-hub-layout-4-heads",
    // Decays that round to 1.
    "denseretnet-m1-64-heads",
    "falcon-mamba",
];

/// The reference's logits of a prompt, and its states after the lengths asked for.
struct Oracle {
    tokens: Vec<i64>,
    logits: Array2<f64>,
    states: Vec<(usize, State<f64>)>,
}

impl Oracle {
    fn new(model: &str, lengths: &[usize]) -> Self {
        let reference: Reference = parity::reference(&Checkpoint::open(&golden(model)).unwrap()).unwrap();
        let longest = *lengths.iter().max().unwrap();
        let tokens: Vec<i64> =
            (0..longest).map(|i| ((i * i * 31 + i * 7 + 5) % reference.vocabulary()) as i64).collect();
        let mut state = reference.initial_state::<f64>();
        let (mut rows, mut states, mut done) = (Vec::new(), Vec::new(), 0);
        for &length in lengths {
            rows.push(reference.parallel(&tokens[done..length], &mut state, &mut ()));
            states.push((length, state.clone()));
            done = length;
        }
        let views: Vec<_> = rows.iter().map(|rows| rows.view()).collect();
        Self { tokens, logits: ndarray::concatenate(ndarray::Axis(0), &views).unwrap(), states }
    }

    /// Checks the logits that follow a prefix.
    #[track_caller]
    fn follows(&self, length: usize, got: &[f32], what: &Case) {
        let expected = self.logits.row(length - 1).to_vec();
        what.tolerance.assert_close(got, &expected, &format!("{}: after {length} tokens", what.name));
    }

    /// Checks the states after a prefix.
    #[track_caller]
    fn leaves(&self, length: usize, row: &Snapshot, what: &Case) {
        let (_, state) = self.states.iter().find(|(known, _)| *known == length).unwrap();
        for (name, tensor) in row.tensors() {
            let Values::Float32(got) = &tensor.values else { panic!("{name}: expected floats") };
            let expected: Vec<f64> = state.tensors[name].iter().copied().collect();
            what.tolerance.assert_state(got, &expected, &format!("{}: {name} after {length} tokens", what.name));
        }
    }
}

/// What is compared, and with which tolerance.
struct Case {
    name: String,
    tolerance: &'static Tolerance,
}

impl Case {
    fn and(&self, more: String) -> Self {
        Self { name: format!("{}: {more}", self.name), ..*self }
    }
}

/// Calls `check` with every model and its oracle, for every row of the table that is run here.
fn everywhere(lengths: &[usize], check: impl Fn(&mut dyn Model, &Oracle, &Case)) {
    among(rows(), lengths, check);
}

fn among(rows: impl Iterator<Item = &'static Row>, lengths: &[usize], check: impl Fn(&mut dyn Model, &Oracle, &Case)) {
    let oracles = MODELS.map(|model| Oracle::new(model, lengths));
    for row in rows {
        for (model, oracle) in MODELS.into_iter().zip(&oracles) {
            let options = ExportOptions::default().with_lowering(row.lowering);
            let exported = exported(&golden(model), &options);
            let what = Case { name: format!("{model}, {}", row.name()), tolerance: row.tolerance };
            check(&mut *row.load(&exported.bundle), oracle, &what);
        }
    }
}

fn prompts_of(rows: impl Iterator<Item = &'static Row>, lengths: &[usize]) {
    among(rows, lengths, |model, oracle, what| {
        for &length in lengths {
            let mut states = model.initial_states(1).unwrap();
            let tokens = TokenBatch::new(&oracle.tokens[..length], std::slice::from_ref(&length)).unwrap();
            let got = model.prefill(&tokens, &mut states).unwrap().at(0, 0).to_vec();
            oracle.follows(length, &got, what);
            oracle.leaves(length, &states.snapshot().unwrap(), what);
        }
    });
}

#[test]
fn prompts_of_every_length_give_the_right_logits_and_states() {
    prompts_of(rows(), &LENGTHS);
}

#[test]
fn long_prompts_give_the_right_logits_and_states_by_the_kernels() {
    prompts_of(rows().filter(|row| row.has_kernels()), &LONG);
}

/// Run it with `cargo test --release --test suite -- --ignored`.
#[test]
#[ignore = "standard operators are slow on long prompts"]
fn long_prompts_give_the_right_logits_and_states_by_standard_operators() {
    prompts_of(rows().filter(|row| !row.has_kernels()), &LONG);
}

#[test]
fn rows_of_a_batch_are_what_they_are_alone() {
    let lengths = [1, 2, 5, 9, 16, 32];
    everywhere(&[1, 2, 5, 9, 16, 32, 33], |model, oracle, what| {
        for batch in [1, 2, 6] {
            let lengths = &lengths[6 - batch..];
            let width = 32;
            let row =
                |&length: &usize| oracle.tokens[..length].iter().copied().chain(std::iter::repeat_n(1, width - length));
            let ids: Vec<i64> = lengths.iter().flat_map(row).collect();
            let mut states = model.initial_states(batch).unwrap();
            let logits = model.prefill(&TokenBatch::new(&ids, lengths).unwrap(), &mut states).unwrap();
            for (row, &length) in lengths.iter().enumerate() {
                oracle.follows(length, logits.last(row, length), what);
            }
            let snapshot = states.snapshot().unwrap();
            for (row, &length) in lengths.iter().enumerate() {
                oracle.leaves(length, &snapshot.select(&[row]).unwrap(), what);
            }
            // One more step, each row from its own position.
            let next: Vec<i64> = lengths.iter().map(|&length| oracle.tokens[length]).collect();
            let logits = model.step(&next, &mut states).unwrap();
            for (row, &length) in lengths.iter().enumerate() {
                oracle.follows(length + 1, logits.at(row, 0), &what.and(format!("row {row} of {batch}")));
            }
        }
    });
}

/// Steps through the rest of a prompt, checking each.
fn steps(model: &mut dyn Model, states: &mut States, oracle: &Oracle, from: usize, what: &Case) {
    for at in from..oracle.tokens.len() {
        let got = model.step(&oracle.tokens[at..=at], states).unwrap().at(0, 0).to_vec();
        oracle.follows(at + 1, &got, what);
    }
}

#[test]
fn every_split_of_a_prompt_between_the_graphs_is_the_same_prompt() {
    everywhere(&[65], |model, oracle, what| {
        for cut in 1..65 {
            let mut states = model.initial_states(1).unwrap();
            model.prefill(&TokenBatch::new(&oracle.tokens[..cut], &[cut]).unwrap(), &mut states).unwrap();
            // The rest follows in steps or, where it is long, in a step and one call.
            if cut > 48 {
                steps(model, &mut states, oracle, cut, &what.and(format!("cut at {cut}")));
            } else {
                model.step(&oracle.tokens[cut..=cut], &mut states).unwrap();
                let rest = &oracle.tokens[cut + 1..];
                let logits = model.prefill(&TokenBatch::new(rest, &[rest.len()]).unwrap(), &mut states).unwrap();
                oracle.follows(65, logits.at(0, 0), &what.and(format!("cut at {cut}")));
            }
            oracle.leaves(65, &states.snapshot().unwrap(), what);
        }
    });
}

#[test]
fn states_saved_and_restored_in_the_middle_go_on_as_before() {
    let folder = tempfile::tempdir().unwrap();
    everywhere(&[40], |model, oracle, what| {
        let mut states = model.initial_states(1).unwrap();
        model.prefill(&TokenBatch::new(&oracle.tokens[..17], &[17]).unwrap(), &mut states).unwrap();
        let path = folder.path().join("state");
        states.snapshot().unwrap().save(&path).unwrap();
        let mut restored = model.restore(&Snapshot::load(&path).unwrap()).unwrap();
        steps(model, &mut restored, oracle, 17, what);
        oracle.leaves(40, &restored.snapshot().unwrap(), what);
    });
}
