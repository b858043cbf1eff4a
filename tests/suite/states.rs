//! States: saved, restored, forked, moved from one runtime to another.

use crate::{
    bundles::{Golden, RUNTIMES, exported, golden, load},
    table::FP32,
};
use densessm::{ExportOptions, Snapshot, TokenBatch};

const MODELS: [&str; 2] = ["densemamba-m2-both-gates", "denseretnet-m2-hub-layout-4-heads"];

#[test]
fn states_saved_on_one_runtime_continue_on_any_other() {
    for name in MODELS {
        let golden_model = golden(name);
        let golden = Golden::open(&golden_model);
        let exported = exported(&golden_model, &ExportOptions::default());
        let file = exported.bundle.dir().join("states");
        let cut = 7;
        let rows: Vec<usize> = (0..golden.lengths.len()).filter(|&row| golden.lengths[row] > cut).collect();
        let batch = rows.len();
        assert!(batch > 1, "{name} has too few rows of more than {cut} tokens");
        let head: Vec<i64> = rows.iter().flat_map(|&row| &golden.row(row)[..cut]).copied().collect();
        for from in RUNTIMES {
            let mut model = load(&exported.bundle, from);
            let mut states = model.initial_states(batch).unwrap();
            model.prefill(&TokenBatch::new(&head, &vec![cut; batch]).unwrap(), &mut states).unwrap();
            states.snapshot().unwrap().save(&file).unwrap();
            for to in RUNTIMES {
                let snapshot = Snapshot::load(&file).unwrap();
                snapshot.check(&exported.bundle).unwrap();
                assert_eq!(snapshot.lengths(), vec![cut as i64; batch]);
                let mut model = load(&exported.bundle, to);
                let mut states = model.restore(&snapshot).unwrap();
                let next: Vec<i64> = rows.iter().map(|&row| golden.row(row)[cut]).collect();
                let logits = model.step(&next, &mut states).unwrap();
                for (i, &row) in rows.iter().enumerate() {
                    let what = format!("{name}, {} to {}, row {row}", from.name(), to.name());
                    FP32.assert_close(logits.at(i, 0), golden.at(row, cut), &what);
                }
            }
        }
    }
}

#[test]
fn a_fork_is_independent_of_its_original() {
    for name in MODELS {
        let golden_model = golden(name);
        let golden = Golden::open(&golden_model);
        let exported = exported(&golden_model, &ExportOptions::default());
        let row = golden.row(0);
        for runtime in RUNTIMES {
            let mut model = load(&exported.bundle, runtime);
            let mut states = model.initial_states(1).unwrap();
            model.prefill(&TokenBatch::new(&row[..4], &[4]).unwrap(), &mut states).unwrap();
            let mut fork = states.fork().unwrap();
            let other = if row[4] == 0 { 1 } else { 0 };
            for token in [other, other, other] {
                model.step(&[token], &mut fork).unwrap();
            }
            assert_eq!((states.lengths(), fork.lengths()), (&[4][..], &[7][..]));
            let logits = model.step(&row[4..5], &mut states).unwrap();
            FP32.assert_close(logits.at(0, 0), golden.at(0, 4), &format!("{name} on {}", runtime.name()));
        }
    }
}

#[test]
fn a_call_that_fails_leaves_the_states_as_they_were() {
    for name in MODELS {
        let golden_model = golden(name);
        let golden = Golden::open(&golden_model);
        let exported = exported(&golden_model, &ExportOptions::default());
        let row = golden.row(0);
        for runtime in RUNTIMES {
            let mut model = load(&exported.bundle, runtime);
            let mut states = model.initial_states(1).unwrap();
            model.prefill(&TokenBatch::new(&row[..4], &[4]).unwrap(), &mut states).unwrap();
            let outside = golden.vocabulary as i64;
            let error = model.step(&[outside], &mut states).unwrap_err().to_string();
            assert!(error.contains(&format!("got {outside}")), "{error}");
            assert!(model.step(&[0, 0], &mut states).is_err(), "two tokens for one row");
            assert!(model.prefill(&TokenBatch::new(&[0, -1], &[2]).unwrap(), &mut states).is_err());
            let logits = model.step(&row[4..5], &mut states).unwrap();
            FP32.assert_close(logits.at(0, 0), golden.at(0, 4), &format!("{name} on {}", runtime.name()));
        }
    }
}

#[test]
fn states_of_another_model_are_refused() {
    let [mamba, retnet] = MODELS.map(|name| exported(&golden(name), &ExportOptions::default()));
    for runtime in RUNTIMES {
        let mut model = load(&mamba.bundle, runtime);
        let states = model.initial_states(1).unwrap();
        let snapshot = states.snapshot().unwrap();
        let error = load(&retnet.bundle, runtime).restore(&snapshot).err().unwrap().to_string();
        assert!(error.starts_with("states: expected those of model"), "{error}");
    }
}
