//! The checks of `tests/conformance/check_bundle.py`, on every runtime of the project.

use crate::{
    bundles::{Golden, exported, fixture, models},
    table::{HALF, Tolerance, rows},
};
use densessm::{Bundle, ExportOptions, Model, TokenBatch, proto::LogitsMode};

#[test]
fn every_model_agrees_with_its_golden_on_every_runtime_in_every_mode() {
    for model in models() {
        let golden = Golden::open(&model);
        for row in rows() {
            for logits in [LogitsMode::Last, LogitsMode::All] {
                let options = ExportOptions::default().with_lowering(row.lowering).with_logits(logits);
                let exported = exported(&model, &options);
                let what = format!("{}, {logits:?}, {}", model.display(), row.name());
                check_model(&mut *row.load(&exported.bundle), &golden, row.tolerance, &what);
            }
        }
    }
}

#[test]
fn every_model_in_half_precision_agrees_with_its_golden_on_every_runtime() {
    for model in models() {
        let golden = Golden::open(&model);
        for row in rows() {
            for tolerance in &HALF {
                let options = ExportOptions::default().with_lowering(row.lowering).with_precision(tolerance.precision);
                let exported = exported(&model, &options);
                let what = format!("{}, {}, {}", model.display(), tolerance.precision, row.name());
                let mut loaded = row.load(&exported.bundle);
                ragged_batch(&mut *loaded, &golden, tolerance, &what);
                handed_over(&mut *loaded, &golden, tolerance, &what);
            }
        }
    }
}

#[test]
fn bundles_of_format_2_give_their_golden_logits_on_every_runtime() {
    for family in ["dense_mamba", "dense_retnet"] {
        let folder = fixture("format-2", family);
        let (bundle, golden) = (Bundle::open(&folder).unwrap(), Golden::open(&folder));
        let tolerance = HALF.iter().find(|half| half.precision == bundle.manifest().precision).unwrap();
        for row in rows().filter(|row| row.lowering == bundle.manifest().lowering) {
            let what = format!("format 2, {family}, {}", row.name());
            check_model(&mut *row.load(&bundle), &golden, tolerance, &what);
        }
    }
}

#[test]
fn bundles_of_format_1_give_their_golden_logits_on_every_runtime() {
    for family in ["dense_mamba", "dense_retnet"] {
        let folder = fixture("format-1", family);
        let (bundle, golden) = (Bundle::open(&folder).unwrap(), Golden::open(&folder));
        for row in rows().filter(|row| row.lowering == bundle.manifest().lowering) {
            let what = format!("format 1, {family}, {}", row.name());
            check_model(&mut *row.load(&bundle), &golden, row.tolerance, &what);
        }
    }
}

fn check_model(model: &mut dyn Model, golden: &Golden, tolerance: &Tolerance, what: &str) {
    ragged_batch(model, golden, tolerance, what);
    step_by_step(model, golden, tolerance, what);
    handed_over(model, golden, tolerance, what);
    in_pieces(model, golden, tolerance, what);
    batch_of_steps(model, golden, tolerance, what);
}

/// A right-padded batch gives each row's logits and states as the row alone does.
fn ragged_batch(model: &mut dyn Model, golden: &Golden, tolerance: &Tolerance, what: &str) {
    let batch = golden.lengths.len();
    let mut states = model.initial_states(batch).unwrap();
    let tokens = TokenBatch::new(&golden.ids, &golden.lengths).unwrap();
    let logits = model.prefill(&tokens, &mut states).unwrap();
    for (row, &length) in golden.lengths.iter().enumerate() {
        tolerance.assert_close(
            logits.last(row, length),
            golden.at(row, length - 1),
            &format!("{what}: ragged row {row}"),
        );
        for position in (0..length).take_while(|_| logits.positions > 1) {
            let what = format!("{what}: ragged row {row}, token {position}");
            tolerance.assert_close(logits.at(row, position), golden.at(row, position), &what);
        }
    }
    let together = states.snapshot().unwrap();
    for (row, &length) in golden.lengths.iter().enumerate() {
        let mut states = model.initial_states(1).unwrap();
        model.prefill(&TokenBatch::new(golden.row(row), &[length]).unwrap(), &mut states).unwrap();
        let (alone, row_of_batch) = (states.snapshot().unwrap(), together.select(&[row]).unwrap());
        assert_eq!(alone.lengths(), row_of_batch.lengths(), "{what}");
        for (name, tensor) in alone.tensors() {
            let what = format!("{what}: row {row}, {name}");
            tolerance.assert_state(floats(&row_of_batch.tensors()[name]), floats(tensor), &what);
        }
    }
}

fn floats(tensor: &densessm::HostTensor) -> &[f32] {
    match &tensor.values {
        densessm::Values::Float32(values) => values,
        other => panic!("expected floats, got {other:?}"),
    }
}

fn step_by_step(model: &mut dyn Model, golden: &Golden, tolerance: &Tolerance, what: &str) {
    let mut states = model.initial_states(1).unwrap();
    for (time, &token) in golden.row(0).iter().enumerate() {
        let logits = model.step(&[token], &mut states).unwrap();
        tolerance.assert_close(logits.at(0, 0), golden.at(0, time), &format!("{what}: step {time}"));
    }
}

/// Prefill hands over to steps, at several places.
fn handed_over(model: &mut dyn Model, golden: &Golden, tolerance: &Tolerance, what: &str) {
    let row = golden.row(0);
    for cut in [1, 2, 3, row.len() / 2, row.len() - 1] {
        let mut states = model.initial_states(1).unwrap();
        let logits = model.prefill(&TokenBatch::new(&row[..cut], &[cut]).unwrap(), &mut states).unwrap();
        tolerance.assert_close(logits.last(0, cut), golden.at(0, cut - 1), &format!("{what}: prefill of {cut}"));
        for (time, &token) in row.iter().enumerate().skip(cut) {
            let logits = model.step(&[token], &mut states).unwrap();
            tolerance.assert_close(logits.at(0, 0), golden.at(0, time), &format!("{what}: step {time} after {cut}"));
        }
    }
}

/// A prompt fed in pieces of many sizes, alternating between the graphs.
fn in_pieces(model: &mut dyn Model, golden: &Golden, tolerance: &Tolerance, what: &str) {
    let row = golden.row(0);
    let mut states = model.initial_states(1).unwrap();
    let mut at = 0_usize;
    for (i, size) in [1, 5, 1, 2, 16, 1, 1, usize::MAX].into_iter().enumerate() {
        let piece = &row[at..at.saturating_add(size).min(row.len())];
        if piece.is_empty() {
            break;
        }
        at += piece.len();
        let logits = if piece.len() == 1 && i % 2 == 1 {
            model.step(piece, &mut states).unwrap()
        } else {
            model.prefill(&TokenBatch::new(piece, &[piece.len()]).unwrap(), &mut states).unwrap()
        };
        tolerance.assert_close(
            logits.last(0, piece.len()),
            golden.at(0, at - 1),
            &format!("{what}: pieces up to {at}"),
        );
    }
    assert_eq!(states.lengths(), [row.len() as i64]);
}

fn batch_of_steps(model: &mut dyn Model, golden: &Golden, tolerance: &Tolerance, what: &str) {
    let batch = golden.lengths.len();
    let mut states = model.initial_states(batch).unwrap();
    for time in 0..*golden.lengths.iter().min().unwrap() {
        let tokens: Vec<i64> = (0..batch).map(|row| golden.row(row)[time]).collect();
        let logits = model.step(&tokens, &mut states).unwrap();
        for row in 0..batch {
            tolerance.assert_close(
                logits.at(row, 0),
                golden.at(row, time),
                &format!("{what}: batched step {time}, row {row}"),
            );
        }
    }
}
