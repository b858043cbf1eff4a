//! Bundles in half precision: their files, and numbers that half precision cannot hold.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use densessm_bundle::{ExportOptions, export};
use densessm_checkpoint::Checkpoint;
use densessm_proto::{DType, GraphKind, Lowering, Precision};
use safetensors::{SafeTensors, tensor::TensorView};
use std::{fs, ops::ControlFlow, path::Path};

const TENSOR: &str = "backbone.layers.1.mixer.in_proj.weight";

fn golden(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens").join(name)
}

fn exported(model: &Path, out: &Path, options: &ExportOptions) -> Result<u64, String> {
    let checkpoint = Checkpoint::open(model).unwrap();
    let exported = export(&checkpoint, out, options, |_| ControlFlow::Continue(()));
    let manifest = exported.map_err(|error| error.to_string())?.manifest;
    let half = options.precision.matrices();
    let graphs: Vec<_> = manifest.graphs.iter().map(|graph| (graph.kind, graph.activations)).collect();
    let of = |activations: DType| options.graphs.iter().map(move |&kind| (kind, activations));
    match half {
        DType::F32 => assert_eq!(graphs, of(DType::F32).collect::<Vec<_>>()),
        half => assert_eq!(graphs, of(DType::F32).chain(of(half)).collect::<Vec<_>>()),
    }
    for entry in &manifest.graphs {
        assert!(out.join(&entry.file).is_file(), "{}", entry.file);
        assert!(manifest.files.iter().any(|file| file.name == entry.file));
    }
    Ok(manifest.files.iter().find(|file| file.name == "model.onnx.data").unwrap().size)
}

#[test]
fn half_precision_halves_the_matrices_and_adds_a_graph_for_each() {
    let folder = tempfile::tempdir().unwrap();
    for model in ["densemamba-m3-state-gate-linear-untied", "denseretnet-m0", "falcon-mamba"] {
        for lowering in [Lowering::Function, Lowering::Inline] {
            let size = |precision: Precision| {
                let options = ExportOptions::default().with_lowering(lowering).with_precision(precision);
                exported(&golden(model), &folder.path().join(format!("{model}-{lowering}-{precision}")), &options)
            };
            let [fp32, fp16, bf16] = Precision::ALL.map(|precision| size(precision).unwrap());
            assert_eq!(fp16, bf16);
            assert!(2 * fp16 < fp32 + fp32 / 2, "{model}: {fp16} of {fp32} bytes");
        }
    }
    let only = ExportOptions::default().with_graphs([GraphKind::Recurrent]).with_precision(Precision::Bf16);
    exported(&golden("denseretnet-m0"), &folder.path().join("only"), &only).unwrap();
}

#[test]
fn a_number_beyond_fp16_is_an_error_that_names_the_tensor_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    fs::create_dir(&model).unwrap();
    let source = golden("mamba-m0-transformers");
    fs::copy(source.join("config.json"), model.join("config.json")).unwrap();
    let bytes = fs::read(source.join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut changed: Vec<u8> = tensors.tensor(TENSOR).unwrap().data().to_vec();
    changed[4..8].copy_from_slice(&70_000_f32.to_le_bytes());
    let all = tensors.tensors().into_iter().map(|(name, view)| {
        let data = if name == TENSOR { &changed[..] } else { view.data() };
        let view = TensorView::new(view.dtype(), view.shape().to_vec(), data).unwrap();
        (name, view)
    });
    fs::write(model.join("model.safetensors"), safetensors::serialize(all, None).unwrap()).unwrap();

    let (fp16, bf16) = (folder.path().join("fp16"), folder.path().join("bf16"));
    let error = exported(&model, &fp16, &ExportOptions::default().with_precision(Precision::Fp16)).unwrap_err();
    let expected =
        format!("weight `{TENSOR}`: element 1 is 70000, which is too large for fp16; store it in fp32 or bf16");
    assert!(error.contains(&expected), "{error}");
    assert!(!fp16.exists());
    exported(&model, &bf16, &ExportOptions::default().with_precision(Precision::Bf16)).unwrap();
}
