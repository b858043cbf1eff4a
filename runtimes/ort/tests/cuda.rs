//! Sessions on a GPU: its kernels, and steps captured into CUDA graphs. Skipped, with a message, without a GPU.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use densessm_bundle::{ExportOptions, Preset, export, init};
use densessm_checkpoint::Checkpoint;
use densessm_cuda::{Buffer, Context, Driver, Error, Graph, PinnedBuffer, Stream};
use densessm_ort::{OrtRuntime, take_capture_problem};
use densessm_proto::{Lowering, Precision, Tolerance, ToleranceClass};
use densessm_session::{Bundle, Device, LoadOptions, Model, Runtime, States, TokenBatch};
use std::{
    ops::ControlFlow,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};
use tempfile::TempDir;

const MODELS: [&str; 5] = [
    "goldens/densemamba-m2-both-gates",
    "goldens/mamba-m0-transformers",
    "goldens/denseretnet-m2-hub-layout-4-heads",
    "checkpoints/densemamba-tiny",
    "checkpoints/denseretnet-tiny",
];
const STEPS: usize = 256;

/// What a test holds while it uses the GPU: problems of captures are those of the whole process. None without a GPU.
fn gpu() -> Option<MutexGuard<'static, ()>> {
    static GPU: Mutex<()> = Mutex::new(());
    match OrtRuntime.availability(Device::CUDA) {
        Ok(_) => Some(GPU.lock().unwrap_or_else(PoisonError::into_inner)),
        Err(unusable) => {
            println!("skipped: {unusable}");
            None
        }
    }
}

fn exported(name: &str, lowering: Lowering, precision: Precision) -> (TempDir, Bundle) {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests").join(name);
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("bundle");
    let options = ExportOptions::default().with_lowering(lowering).with_precision(precision);
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
    let Some(_gpu) = gpu() else { return };
    for name in MODELS {
        let fp32 = [Lowering::Function, Lowering::Inline].map(|lowering| (lowering, Precision::Fp32));
        let half = [Precision::Fp16, Precision::Bf16].map(|precision| (Lowering::Function, precision));
        for (lowering, precision) in fp32.into_iter().chain(half) {
            let (_folder, bundle) = exported(name, lowering, precision);
            let options = || LoadOptions::for_bundle(&bundle).with_device(Device::CUDA);
            let mut captured = load(&bundle, options());
            let mut plain = load(&bundle, options().with_cuda_graph(false));
            for batch in [1, 3] {
                let (got, expected) = (decoded(&mut *captured, batch), decoded(&mut *plain, batch));
                assert!(got == expected, "{name}, {lowering}, {precision}, batch {batch}: the bits differ");
            }
            let problem = take_capture_problem();
            // The functions of standard operators may contain some that ONNX Runtime runs on the CPU.
            match lowering {
                Lowering::Function => assert_eq!(problem, None, "{name}, {lowering}, {precision}"),
                _ => println!("{name}, {lowering}: captured, or why not: {problem:?}"),
            }
        }
    }
}

/// Rows come and go, other states are used in between, and some batches are too large to be captured.
#[test]
fn batches_of_all_sizes_alternate_and_give_what_the_cpu_gives() {
    let Some(_gpu) = gpu() else { return };
    for name in MODELS {
        let (_folder, bundle) = exported(name, Lowering::Function, Precision::Fp32);
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

/// Graphs with half activations, of which the CPU has none: it computes with the same weights and fp32 activations.
#[test]
fn half_activations_are_as_near_to_the_cpu_as_their_tolerance() {
    let Some(_gpu) = gpu() else { return };
    for name in MODELS {
        for precision in [Precision::Fp16, Precision::Bf16] {
            let (_folder, bundle) = exported(name, Lowering::Function, precision);
            let options = LoadOptions::for_bundle(&bundle);
            let mut models = [load(&bundle, options.clone().with_device(Device::CUDA)), load(&bundle, options)];
            let [got, expected] = models.each_mut().map(|model| {
                let mut tokens = Tokens(13);
                let mut states = prefilled(&mut **model, &mut tokens, 2);
                let mut logits: Vec<f32> = Vec::new();
                for _ in 0..8 {
                    let ids = tokens.next(&**model, 2);
                    logits.extend(model.step(&ids, &mut states).unwrap().values);
                }
                logits
            });
            let compared = Tolerance::of(ToleranceClass::Logits, precision).compare(&got, &expected);
            compared.unwrap_or_else(|error| panic!("{name}, {precision}: {error}"));
            assert!(got != expected, "{name}, {precision}: the CPU computes with half activations, too");
        }
    }
}

/// A bundle of the first format has a Split into unequal parts, whose sizes some versions of ONNX Runtime copy from memory
/// of the host, which is then freed. Where one does, the step must not be captured.
#[test]
fn steps_of_the_first_format_are_right_whether_they_are_captured_or_not() {
    let Some(_gpu) = gpu() else { return };
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/format-1/dense_mamba");
    let bundle = Bundle::open(&fixture).unwrap();
    take_capture_problem();
    let options = LoadOptions::for_bundle(&bundle);
    let mut models = [load(&bundle, options.clone().with_device(Device::CUDA)), load(&bundle, options)];
    let [got, expected] = models.each_mut().map(|model| {
        let mut tokens = Tokens(17);
        let mut states = prefilled(&mut **model, &mut tokens, 1);
        let mut logits: Vec<f32> = Vec::new();
        for _ in 0..16 {
            let ids = tokens.next(&**model, 1);
            logits.extend(model.step(&ids, &mut states).unwrap().values);
            // What another batch leaves in the memory of the host is not what a captured step needs.
            let mut others = prefilled(&mut **model, &mut tokens, 3);
            let ids = tokens.next(&**model, 3);
            logits.extend(model.step(&ids, &mut others).unwrap().values);
        }
        logits
    });
    if let Some(problem) = take_capture_problem() {
        assert!(problem.contains("expected a step without work of the host"), "{problem}");
    }
    Tolerance::of(ToleranceClass::Logits, Precision::Fp32).compare(&got, &expected).unwrap();
}

#[test]
fn a_captured_graph_tells_its_copies_of_memory_of_the_host_from_others() {
    let Some(_gpu) = gpu() else { return };
    let context = Context::primary(&Driver::open().unwrap(), 0).unwrap();
    let stream = Stream::new(&context).unwrap();
    let host: PinnedBuffer<i64> = PinnedBuffer::new(&context, 4).unwrap();
    let [from, to] = [(); 2].map(|()| Buffer::<i64>::new(&context, 4).unwrap());
    let captured = |from_host: bool| {
        let graph = Graph::capture(&stream, || {
            // SAFETY: the buffers have the same length; the graph is never launched.
            unsafe {
                match from_host {
                    true => stream.upload(to.address(), &host),
                    false => stream.copy(to.address(), from.address(), 4 * size_of::<i64>()),
                }
            }
        });
        graph.and_then(|graph: Graph| graph.host_work()).unwrap_or_else(|error: Error| panic!("{error}"))
    };
    assert_eq!(
        [true, false].map(|from_host| (captured(from_host).copies, captured(from_host).callbacks)),
        [(1, 0), (0, 0)]
    );
}

/// Steps of up to eight rows run as one kernel, where the bundle has published sizes; states go from one graph to the
/// other as the batch grows and shrinks.
#[test]
fn the_fused_step_computes_what_the_recurrent_graph_does() {
    let Some(_gpu) = gpu() else { return };
    for (preset, precision) in [("densemamba-360m", Precision::Fp16), ("mamba-370m", Precision::Bf16)] {
        let folder = tempfile::tempdir().unwrap();
        let (checkpoint, out) = (folder.path().join("model"), folder.path().join("bundle"));
        let preset: Preset = preset.parse().unwrap();
        init(preset, &checkpoint, 3, false, |_, _| ControlFlow::Continue(())).unwrap();
        let options = ExportOptions::default().with_precision(precision);
        export(&Checkpoint::open(&checkpoint).unwrap(), &out, &options, |_| ControlFlow::Continue(())).unwrap();
        let bundle = Bundle::open(&out).unwrap();
        let options = || LoadOptions::for_bundle(&bundle).with_device(Device::CUDA);
        let results = [true, false].map(|fused| {
            let mut model = load(&bundle, options().with_fused_step(fused));
            // The step's one node, if it is fused.
            let placement = &model.info().placement;
            assert_eq!(placement.iter().any(|graph| (graph.nodes(), graph.gpu_kernels) == (1, 1)), fused);
            let mut tokens = Tokens(5);
            let mut states = prefilled(&mut *model, &mut tokens, 1);
            let mut results: Vec<f32> = Vec::new();
            for rows in [1, 2, 3, 5, 8, 9, 9, 8, 6, 4, 1] {
                while states.batch() < rows {
                    states.join(&prefilled(&mut *model, &mut tokens, 1)).unwrap();
                }
                (rows..states.batch()).for_each(|_| states.swap_remove(0).unwrap());
                for _ in 0..5 {
                    let ids = tokens.next(&*model, rows);
                    results.extend(model.step(&ids, &mut states).unwrap().values);
                }
            }
            results
        });
        let [got, expected] = &results;
        let compared = Tolerance::of(ToleranceClass::Logits, precision).compare(got, expected);
        compared.unwrap_or_else(|error| panic!("{}: {error}", preset.name()));
        assert_eq!(take_capture_problem(), None);
    }
}
