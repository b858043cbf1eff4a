//! The fused step computes what the recurrent graph does: its body in standard operators, on the CPU.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use densessm_bundle::{ExportOptions, export};
use densessm_checkpoint::Checkpoint;
use densessm_proto::{DType, Dimension, GraphEntry, GraphKind, Lowering, Precision, operators::DOMAIN};
use densessm_session::{Bundle, onnx::OnnxFile};
use ort::{
    environment::Environment,
    session::{Session, SessionInputValue},
    value::Tensor,
};
use std::{ops::ControlFlow, path::Path, sync::OnceLock};
use tempfile::TempDir;

const BATCH: usize = 3;

fn exported(name: &str, options: &ExportOptions) -> (TempDir, Bundle) {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens").join(name);
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("bundle");
    export(&Checkpoint::open(&model).unwrap(), &out, options, |_| ControlFlow::Continue(())).unwrap();
    let bundle = Bundle::open(&out).unwrap();
    (folder, bundle)
}

fn environment() -> &'static Environment {
    static ENVIRONMENT: OnceLock<Environment> = OnceLock::new();
    ENVIRONMENT.get_or_init(|| {
        let path = densessm_ort::library().unwrap_or_else(|error| panic!("{error}\n(set ORT_DYLIB_PATH)"));
        ort::init_from(path).unwrap().build().unwrap()
    })
}

/// All outputs of a graph for pseudo-random inputs, by name.
fn outputs(bundle: &Bundle, entry: &GraphEntry) -> Vec<(String, Vec<f32>)> {
    let vocabulary = bundle.architecture().vocab_size();
    // Without the operators' kernels their functions run.
    let mut builder = Session::builder(environment()).unwrap();
    let mut session = builder.commit_from_file(bundle.entry_path(entry).unwrap()).unwrap();
    let mut seed = 17_u64;
    let mut next = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 40) as usize
    };
    let inputs = entry.inputs.iter().map(|input| {
        let size = |dimension: &Dimension| if let Dimension::Size(size) = dimension { *size } else { BATCH };
        let shape: Vec<usize> = input.shape.iter().map(size).collect();
        let count = shape.iter().product();
        let value = match input.dtype {
            DType::I64 => {
                let tokens: Vec<i64> = (0..count).map(|_| (next() % vocabulary) as i64).collect();
                SessionInputValue::from(Tensor::from_array((shape, tokens)).unwrap())
            }
            _ => {
                let values: Vec<f32> = (0..count).map(|_| next() as f32 / (1 << 23) as f32 - 1.0).collect();
                SessionInputValue::from(Tensor::from_array((shape, values)).unwrap())
            }
        };
        (input.name.clone(), value)
    });
    let outputs = session.run(inputs.collect::<Vec<_>>()).unwrap();
    let values = |value: &ort::value::ValueRef<'_>| value.try_extract_tensor::<f32>().unwrap().1.to_vec();
    outputs.iter().map(|(name, value)| (name.to_owned(), values(&value))).collect()
}

#[test]
fn the_fused_step_computes_what_the_recurrent_graph_does() {
    for name in ["densemamba-m2-both-gates", "mamba-m0-transformers"] {
        let options = ExportOptions::default().with_precision(Precision::Fp16);
        let (_folder, bundle) = exported(name, &options);
        let fused = bundle.manifest().fused_step(DType::F16).unwrap_or_else(|| panic!("{name}: no fused step"));
        let recurrent = bundle.manifest().graph_with(GraphKind::Recurrent, DType::F16).unwrap();
        assert_eq!((&fused.inputs, &fused.outputs), (&recurrent.inputs, &recurrent.outputs), "{name}");
        let file = OnnxFile::of_entry(&bundle, fused);
        let file = file.unwrap_or_else(|error| panic!("{name}: {error}"));
        let operators: Vec<_> = file.graph.node.iter().map(|node| (&*node.domain, &*node.op_type)).collect();
        assert_eq!(operators, [(DOMAIN, "MambaStep")], "{name}");

        let (got, expected) = (outputs(&bundle, fused), outputs(&bundle, recurrent));
        assert_eq!(got.len(), expected.len());
        for ((output, got), (_, expected)) in got.iter().zip(&expected) {
            let difference: f32 = got.iter().zip(expected).map(|(g, e)| (g - e).powi(2)).sum();
            let norm: f32 = expected.iter().map(|e| e.powi(2)).sum();
            let error = (difference / norm).sqrt();
            // The same products of rounded factors, added in another order at most.
            assert!(got.len() == expected.len() && error < 2e-3, "{name}: {output}: relative error {error}");
        }
    }
}

#[test]
fn only_function_bundles_in_half_precision_have_a_fused_step() {
    let name = "densemamba-m2-both-gates";
    let fp32 = ExportOptions::default();
    let inline = ExportOptions::default().with_precision(Precision::Fp16).with_lowering(Lowering::Inline);
    let parallel = ExportOptions::default().with_precision(Precision::Fp16).with_graphs([GraphKind::Parallel]);
    for options in [fp32, inline, parallel] {
        let (_folder, bundle) = exported(name, &options);
        assert!(!bundle.manifest().graphs.iter().any(|graph| graph.fused), "{options:?}");
    }
}
