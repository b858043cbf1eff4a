//! The operators as ONNX Runtime registers them: those for the CPU and for GPUs under one name.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use densessm_bundle::{ExportOptions, export};
use densessm_checkpoint::Checkpoint;
use densessm_ort_operators::{Placement, domain, domain_with_cuda};
use densessm_proto::{GraphKind, operators::DOMAIN};
use densessm_session::{Bundle, onnx::OnnxFile};
use ort::session::Session;
use std::{collections::BTreeSet, ops::ControlFlow, path::Path, sync::Arc};
use tempfile::TempDir;

fn exported(name: &str) -> (TempDir, Bundle) {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens").join(name);
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("bundle");
    let checkpoint = Checkpoint::open(&model).unwrap();
    export(&checkpoint, &out, &ExportOptions::default(), |_| ControlFlow::Continue(())).unwrap();
    let bundle = Bundle::open(&out).unwrap();
    (folder, bundle)
}

/// A session on the CPU takes the CPU's kernels, whether or not those for GPUs are registered beside them.
#[test]
fn kernels_for_gpus_do_not_disturb_a_session_on_the_cpu() {
    let path = densessm_ort::library().unwrap_or_else(|error| panic!("{error}\n(set ORT_DYLIB_PATH)"));
    let environment = ort::init_from(path).unwrap().build().unwrap();
    for model in ["densemamba-m2-both-gates", "mamba-m0-transformers", "denseretnet-m2-hub-layout-4-heads"] {
        let (_folder, bundle) = exported(model);
        for kind in [GraphKind::Parallel, GraphKind::Recurrent] {
            let file = OnnxFile::of_bundle(&bundle, kind).unwrap();
            let nodes = file.graph.node.iter().filter(|node| node.domain == DOMAIN);
            let nodes: BTreeSet<String> = nodes.map(|node| node.name.clone()).collect();
            assert!(!nodes.is_empty());
            let placement = Arc::new(Placement::default());
            for domain in [domain().unwrap(), domain_with_cuda(Some(Arc::clone(&placement))).unwrap()] {
                let builder = Session::builder(&environment).unwrap();
                let mut builder = builder.with_operators(domain).unwrap();
                let loaded = builder.commit_from_file(bundle.graph_path(kind).unwrap());
                loaded.unwrap_or_else(|error| panic!("{model}, {kind}: {error}"));
            }
            assert_eq!(placement.cpu().into_iter().collect::<BTreeSet<_>>(), nodes, "{model}, {kind}");
            assert!(placement.cuda().is_empty());
        }
    }
}
