//! Rows of states on ONNX Runtime: they join and leave a batch in the memory in which they are kept. What the rows must
//! hold is known from snapshots, which are put together on the host in the same way.
//!
//! The tests run on the CPU and, where ONNX Runtime can use it, on CUDA.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use densessm_bundle::{ExportOptions, export};
use densessm_checkpoint::Checkpoint;
use densessm_session::{
    Bundle, Device, Error, HostTensor, LoadOptions, Model, Runtime, Snapshot, StateStore, States, StatesError,
    TokenBatch,
};
use std::{collections::BTreeMap, ops::ControlFlow, path::Path};
use tempfile::TempDir;

const MODELS: [&str; 2] = ["densemamba-m2-both-gates", "denseretnet-m2-hub-layout-4-heads"];

fn exported(name: &str) -> (TempDir, Bundle) {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens").join(name);
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("bundle");
    let checkpoint = Checkpoint::open(&model).unwrap();
    export(&checkpoint, &out, &ExportOptions::default(), |_| ControlFlow::Continue(())).unwrap();
    let bundle = Bundle::open(&out).unwrap();
    (folder, bundle)
}

fn load(bundle: &Bundle, device: Device) -> Box<dyn Model> {
    let options = LoadOptions::for_bundle(bundle).with_device(device);
    densessm_ort::OrtRuntime
        .load(bundle, &options)
        .unwrap_or_else(|error| panic!("{error}\n(tests/run fetches ONNX Runtime; on its own, set ORT_DYLIB_PATH)"))
}

/// The CPU, and the GPU if there is one.
fn devices() -> Vec<Device> {
    let mut devices = vec![Device::CPU];
    if densessm_ort::OrtRuntime.availability(Device::CUDA).is_ok() {
        devices.push(Device::CUDA);
    }
    devices
}

/// A small generator of pseudo-random numbers, the same in every run.
struct Draws(u64);

impl Draws {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit
    }

    fn tokens(&mut self, count: usize) -> Vec<i64> {
        (0..count).map(|_| self.below(90) as i64).collect()
    }

    /// States of some sequences, each after a few tokens.
    fn states(&mut self, model: &mut dyn Model, batch: usize) -> States {
        let mut states = model.initial_states(batch).unwrap();
        let width = 1 + self.below(4);
        let lengths: Vec<usize> = (0..batch).map(|_| 1 + self.below(width)).collect();
        let ids = self.tokens(batch * width);
        model.prefill(&TokenBatch::new(&ids, &lengths).unwrap(), &mut states).unwrap();
        states
    }
}

/// Steps the batch, and a copy of it that went through the host; both must give the same logits and states.
fn assert_steps_alike(model: &mut dyn Model, states: &mut States, draws: &mut Draws, what: &str) {
    let mut restored = model.restore(&states.snapshot().unwrap()).unwrap();
    for _ in 0..2 {
        let tokens = draws.tokens(states.batch());
        let expected = model.step(&tokens, &mut restored).unwrap().values.to_vec();
        assert_eq!(model.step(&tokens, states).unwrap().values, expected, "{what}");
    }
    assert_eq!(states.snapshot().unwrap(), restored.snapshot().unwrap(), "{what}");
}

#[test]
fn rows_that_join_and_leave_hold_what_they_held_to_the_bit() {
    for name in MODELS {
        let (_folder, bundle) = exported(name);
        for device in devices() {
            let mut model = load(&bundle, device);
            let mut draws = Draws(7);
            let mut states = draws.states(&mut *model, 2);
            let mut most = 0;
            for round in 0..60 {
                let what = format!("{name} on {device}, round {round}");
                let before = states.snapshot().unwrap();
                let batch = states.batch();
                let expected = match draws.below(5) {
                    0 | 1 => {
                        let count = 1 + draws.below(3);
                        let joining = draws.states(&mut *model, count);
                        states.join(&joining).unwrap();
                        Snapshot::concat(&[before, joining.snapshot().unwrap()]).unwrap()
                    }
                    2 => {
                        let from = draws.states(&mut *model, 3);
                        states.join_rows(&from, &[2, 0, 0]).unwrap();
                        let joined = from.snapshot().unwrap().select(&[2, 0, 0]).unwrap();
                        Snapshot::concat(&[before, joined]).unwrap()
                    }
                    3 if batch > 4 => {
                        // A smaller batch of copies takes the place of the larger one.
                        let rows: Vec<usize> = (0..4).map(|_| draws.below(batch)).collect();
                        let selected = states.select(&rows).unwrap();
                        assert_eq!(states.snapshot().unwrap(), before, "{what}: selecting changed the rows");
                        states = selected;
                        before.select(&rows).unwrap()
                    }
                    _ if batch > 1 => {
                        let row = draws.below(batch);
                        states.swap_remove(row).unwrap();
                        let mut rows: Vec<usize> = (0..batch).collect();
                        rows.swap_remove(row);
                        before.select(&rows).unwrap()
                    }
                    _ => before,
                };
                assert_eq!(states.snapshot().unwrap(), expected, "{what}");
                assert_steps_alike(&mut *model, &mut states, &mut draws, &what);
                most = most.max(states.batch());
            }
            assert!(most > 12, "{name}: at most {most} rows were in the batch: bindings were never dropped");
        }
    }
}

#[test]
fn a_batch_may_be_empty_between_two_sequences_but_not_be_fed() {
    for name in MODELS {
        let (_folder, bundle) = exported(name);
        for device in devices() {
            let mut model = load(&bundle, device);
            let mut draws = Draws(3);
            let mut batch = model.initial_states(0).unwrap();
            batch.reserve(2).unwrap();
            for _ in 0..3 {
                let error = model.step(&[], &mut batch).unwrap_err();
                assert!(matches!(error, Error::States(StatesError::Empty)), "{error}");
                assert!(matches!(batch.snapshot(), Err(Error::States(StatesError::Empty))));
                let sequence = draws.states(&mut *model, 1);
                batch.join(&sequence).unwrap();
                assert_eq!(batch.snapshot().unwrap(), sequence.snapshot().unwrap());
                assert_steps_alike(&mut *model, &mut batch, &mut draws, name);
                batch.swap_remove(0).unwrap();
                assert_eq!(batch.fork().unwrap().batch(), 0);
            }
        }
    }
}

#[test]
fn fresh_rows_are_zeros_in_memory_that_others_have_used() {
    for name in MODELS {
        let (_folder, bundle) = exported(name);
        for device in devices() {
            let mut model = load(&bundle, device);
            for _ in 0..4 {
                let mut states = model.initial_states(3).unwrap();
                let fresh = states.snapshot().unwrap();
                assert_eq!(fresh.lengths(), [0, 0, 0]);
                for (name, tensor) in fresh.tensors() {
                    assert_eq!(tensor.values.to_le_bytes(), vec![0; 4 * tensor.values.len()], "{name} on {device}");
                }
                model.step(&[1, 2, 3], &mut states).unwrap();
            }
        }
    }
}

#[test]
fn a_batch_goes_from_one_model_of_a_bundle_to_another_and_takes_in_rows_of_both() {
    for name in MODELS {
        let (_folder, bundle) = exported(name);
        for device in devices() {
            let (mut first, mut second) = (load(&bundle, device), load(&bundle, device));
            let mut draws = Draws(11);
            let mut batch = draws.states(&mut *first, 1);
            batch.join(&draws.states(&mut *second, 1)).unwrap();
            assert_steps_alike(&mut *first, &mut batch, &mut draws, name);
            assert_steps_alike(&mut *second, &mut batch, &mut draws, name);
            drop(first);
            batch.join(&draws.states(&mut *second, 4)).unwrap();
            assert_steps_alike(&mut *second, &mut batch, &mut draws, name);
        }
    }
}

/// A store of some other runtime.
struct Elsewhere;

impl StateStore for Elsewhere {
    fn fork(&self) -> Result<Box<dyn StateStore>, Error> {
        Ok(Box::new(Self))
    }

    fn select(&self, _: &[usize]) -> Result<Box<dyn StateStore>, Error> {
        Ok(Box::new(Self))
    }

    fn join(&mut self, other: &dyn StateStore, _: &[usize]) -> Result<(), Error> {
        other.downcast_ref::<Self>()?;
        Ok(())
    }

    fn swap_remove(&mut self, _: usize) -> Result<(), Error> {
        Ok(())
    }

    fn reserve(&mut self, _: usize) -> Result<(), Error> {
        Ok(())
    }

    fn tensors(&self) -> Result<BTreeMap<String, HostTensor>, Error> {
        Ok(BTreeMap::new())
    }
}

#[test]
fn rows_that_cannot_join_or_leave_are_errors_and_change_nothing() {
    let [(_one, bundle), (_two, other)] = MODELS.map(exported);
    for device in devices() {
        let mut model = load(&bundle, device);
        let mut draws = Draws(5);
        let mut states = draws.states(&mut *model, 2);
        let before = states.snapshot().unwrap();
        let refused = |result: Result<(), Error>, expected: StatesError| match result {
            Err(Error::States(error)) => assert_eq!(error, expected),
            other => panic!("expected {expected:?}, got {other:?}"),
        };
        let of_other_model = draws.states(&mut *load(&other, device), 1);
        refused(states.join(&of_other_model), StatesError::OtherModel);
        let mut of_other_runtime = States::new(&bundle, Box::new(Elsewhere), vec![1]);
        refused(states.join(&of_other_runtime), StatesError::OtherRuntime);
        refused(of_other_runtime.join(&states), StatesError::OtherRuntime);
        let own = draws.states(&mut *model, 1);
        refused(states.join_rows(&own, &[0, 1]), StatesError::Row { row: 1, batch: 1 });
        refused(states.swap_remove(2), StatesError::Row { row: 2, batch: 2 });
        refused(states.select(&[0, 2]).map(drop), StatesError::Row { row: 2, batch: 2 });
        refused(states.select(&[]).map(drop), StatesError::Empty);
        assert!(states.reserve(usize::MAX / 2).is_err(), "there is no such memory");
        assert_eq!(states.snapshot().unwrap(), before);
        assert_steps_alike(&mut *model, &mut states, &mut draws, "after what was refused");
    }
}

#[test]
fn rows_do_not_join_those_of_another_device() {
    let (_folder, bundle) = exported(MODELS[0]);
    let [cpu, .., gpu] = devices()[..] else { return };
    let mut draws = Draws(1);
    let mut here = draws.states(&mut *load(&bundle, cpu), 1);
    let there = draws.states(&mut *load(&bundle, gpu), 1);
    let error = here.join(&there).unwrap_err();
    assert!(matches!(error, Error::States(StatesError::OtherDevice { .. })), "{error}");
}
