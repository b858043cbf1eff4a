//! Sessions on a GPU: its kernels, and steps captured into CUDA graphs. Skipped, with a message, without a GPU.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use densessm_bundle::{ExportOptions, export};
use densessm_checkpoint::Checkpoint;
use densessm_ort::{OrtRuntime, take_capture_problem};
use densessm_proto::{Lowering, Precision, Tolerance, ToleranceClass};
use densessm_session::{Bundle, Device, LoadOptions, Model, Runtime, States, TokenBatch};
use std::{ops::ControlFlow, path::Path};
use tempfile::TempDir;

const MODELS: [&str; 5] = [
    "goldens/densemamba-m2-both-gates",
    "goldens/mamba-m0-transformers",
    "goldens/denseretnet-m2-hub-layout-4-heads",
    "checkpoints/densemamba-tiny",
    "checkpoints/denseretnet-tiny",
];
const STEPS: usize = 256;

fn gpu() -> bool {
    match OrtRuntime.availability(Device::CUDA) {
        Ok(_) => true,
        Err(unusable) => {
            println!("skipped: {unusable}");
            false
        }
    }
}

fn exported(name: &str, lowering: Lowering) -> (TempDir, Bundle) {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests").join(name);
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("bundle");
    let options = ExportOptions::default().with_lowering(lowering);
    export(&Checkpoint::open(&model).unwrap(), &out, &options, |_| ControlFlow::Continue(())).unwrap();
    let bundle = Bundle::open(&out).unwrap();
    (folder, bundle)
}

fn load(bundle: &Bundle, options: LoadOptions) -> Box<dyn Model> {
    OrtRuntime.load(bundle, &options).unwrap_or_else(|error| panic!("{error}"))
}

/// A small generator of pseudo-random tokens, the same in every run.
struct Tokens(u64);

impl Tokens {
    fn next(&mut self, model: &dyn Model, count: usize) -> Vec<i64> {
        let vocabulary = model.bundle().architecture().vocab_size() as u64;
        let mut draw = || {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((self.0 >> 33) % vocabulary) as i64
        };
        (0..count).map(|_| draw()).collect()
    }
}

/// Rows of a prompt of different lengths.
fn prefilled(model: &mut dyn Model, tokens: &mut Tokens, batch: usize) -> States {
    let mut states = model.initial_states(batch).unwrap();
    let width = 37;
    let lengths: Vec<usize> = (0..batch).map(|row| width - 5 * row.min(6)).collect();
    let ids = tokens.next(model, batch * width);
    model.prefill(&TokenBatch::new(&ids, &lengths).unwrap(), &mut states).unwrap();
    states
}

/// The bits of the logits of many steps, and of the last states.
fn decoded(model: &mut dyn Model, batch: usize) -> Vec<u32> {
    let mut tokens = Tokens(7);
    let mut states = prefilled(model, &mut tokens, batch);
    let mut bits = Vec::new();
    for _ in 0..STEPS {
        let ids = tokens.next(model, batch);
        bits.extend(model.step(&ids, &mut states).unwrap().values.iter().map(|value| value.to_bits()));
    }
    for tensor in states.snapshot().unwrap().tensors().values() {
        if let densessm_session::Values::Float32(values) = &tensor.values {
            bits.extend(values.iter().map(|value| value.to_bits()));
        }
    }
    bits
}

#[test]
fn a_captured_step_computes_the_same_bits() {
    if !gpu() {
        return;
    }
    for name in MODELS {
        for lowering in [Lowering::Function, Lowering::Inline] {
            let (_folder, bundle) = exported(name, lowering);
            let options = || LoadOptions::for_bundle(&bundle).with_device(Device::CUDA);
            let mut captured = load(&bundle, options());
            let mut plain = load(&bundle, options().with_cuda_graph(false));
            for batch in [1, 3] {
                let (got, expected) = (decoded(&mut *captured, batch), decoded(&mut *plain, batch));
                assert!(got == expected, "{name}, {lowering}, batch {batch}: the bits differ");
            }
            let problem = take_capture_problem();
            // The functions of standard operators may contain some that ONNX Runtime runs on the CPU.
            match lowering {
                Lowering::Function => assert_eq!(problem, None, "{name}, {lowering}"),
                _ => println!("{name}, {lowering}: captured, or why not: {problem:?}"),
            }
        }
    }
}

/// Rows come and go, other states are used in between, and some batches are too large to be captured.
#[test]
fn batches_of_all_sizes_alternate_and_give_what_the_cpu_gives() {
    if !gpu() {
        return;
    }
    for name in MODELS {
        let (_folder, bundle) = exported(name, Lowering::Function);
        let options = LoadOptions::for_bundle(&bundle).with_device(Device::CUDA).with_cuda_graph_batch(2);
        let mut models = [load(&bundle, options), load(&bundle, LoadOptions::for_bundle(&bundle))];
        let results = models.each_mut().map(|model| {
            let mut tokens = Tokens(11);
            let mut results: Vec<f32> = Vec::new();
            let mut batch = prefilled(&mut **model, &mut tokens, 1);
            let mut other = prefilled(&mut **model, &mut tokens, 2);
            for round in 0..10 {
                for _ in 0..4 {
                    let ids = tokens.next(&**model, batch.batch());
                    results.extend(model.step(&ids, &mut batch).unwrap().values);
                    let ids = tokens.next(&**model, other.batch());
                    results.extend(model.step(&ids, &mut other).unwrap().values);
                }
                match round % 3 {
                    0 | 1 => batch.join(&prefilled(&mut **model, &mut tokens, 1)).unwrap(),
                    _ => (0..2).for_each(|row| batch.swap_remove(row).unwrap()),
                }
            }
            results
        });
        let [got, expected] = &results;
        let compared = Tolerance::of(ToleranceClass::Logits, Precision::Fp32).compare(got, expected);
        compared.unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}
