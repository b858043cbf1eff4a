//! The graph of a bundle that a GPU runs, with its products written so that they read the weights in place.
//!
//! In half precision a bundle has graphs whose activations are half, too, which the CUDA provider loads. Their matrices
//! are stored as the checkpoint has them, `[out, in]`, and are transposed before each product. ONNX Runtime would transpose
//! them once for each session while it loads, into a copy. So a product with a transposed weight is replaced by ONNX
//! Runtime's operator `FusedMatMul`, which multiplies with the transposed matrix as it is.

use densessm_proto::{
    GraphEntry, GraphKind,
    onnx::{AttributeProto, NodeProto, OperatorSetIdProto, attribute_proto::AttributeType},
};
use densessm_session::{Bundle, Device, Error, Provider, onnx::OnnxFile};
use prost::Message;
use std::collections::{HashMap, HashSet};

/// The domain of ONNX Runtime's own operators.
pub(crate) const CONTRIB: &str = "com.microsoft";
/// Its operator for products with transposed factors.
pub(crate) const FUSED_PRODUCT: &str = "FusedMatMul";

/// Returns the manifest's entry of the graph that a device runs.
///
/// # Errors
/// When the bundle does not contain a graph of this kind.
pub(crate) fn entry(bundle: &Bundle, kind: GraphKind, device: Device) -> Result<&GraphEntry, Error> {
    let manifest = bundle.manifest();
    let half = || manifest.graph_with(kind, manifest.precision.matrices());
    // TensorRT is free to compute in half precision whatever surrounds a value of it: its graphs have none.
    let own = if device.provider() == Provider::Cuda { half() } else { None };
    match own.or_else(|| manifest.graph(kind)) {
        Some(entry) => Ok(entry),
        None => Err(bundle.graph_path(kind).err().unwrap_or(Error::NotLoaded { graph: kind })),
    }
}

/// Reads a graph of a bundle for a device, and replaces its products with transposed weights if the device is a GPU that the
/// CUDA provider drives. Returns whether any was replaced.
///
/// # Errors
/// As [`OnnxFile::of_entry`].
pub(crate) fn read(bundle: &Bundle, entry: &GraphEntry, device: Device) -> Result<(OnnxFile, bool), Error> {
    let mut file = OnnxFile::of_entry(bundle, entry)?;
    let replaced = device.provider() == Provider::Cuda && fuse_transposes(&mut file);
    Ok((file, replaced))
}

/// Encodes a graph for a session that is loaded from memory.
pub(crate) fn encoded(file: OnnxFile) -> Vec<u8> {
    file.into_model().encode_to_vec()
}

/// Replaces `MatMul(x, Transpose(w))` by `FusedMatMul(x, w)` for weights `w` in the bundle's data. Returns whether there was
/// any.
fn fuse_transposes(file: &mut OnnxFile) -> bool {
    let graph = &mut file.graph;
    let weights: HashSet<&str> = graph.initializer.iter().map(|tensor| tensor.name.as_str()).collect();
    let mut transposed: HashMap<String, String> = HashMap::new();
    for node in graph.node.iter().filter(|node| swaps_axes(node)) {
        if let ([weight], [value]) = (&node.input[..], &node.output[..])
            && weights.contains(weight.as_str())
        {
            transposed.insert(value.clone(), weight.clone());
        }
    }
    // What anything else reads stays a transpose.
    let mut read_otherwise: HashSet<String> = graph.output.iter().map(|output| output.name.clone()).collect();
    for node in &graph.node {
        let others = if is_product(node) { &node.input[..1.min(node.input.len())] } else { &node.input[..] };
        read_otherwise.extend(others.iter().cloned());
        for inner in node.attribute.iter().filter_map(|attribute| attribute.g.as_ref()) {
            read_otherwise.extend(inner.node.iter().flat_map(|node| node.input.iter().cloned()));
        }
    }
    transposed.retain(|value, _| !read_otherwise.contains(value));
    for node in graph.node.iter_mut().filter(|node| is_product(node)) {
        let Some(weight) = node.input.get_mut(1) else { continue };
        let Some(source) = transposed.get(weight) else { continue };
        weight.clone_from(source);
        CONTRIB.clone_into(&mut node.domain);
        FUSED_PRODUCT.clone_into(&mut node.op_type);
        node.attribute = vec![AttributeProto {
            name: "transB".to_owned(),
            r#type: AttributeType::Int.into(),
            i: Some(1),
            ..AttributeProto::default()
        }];
    }
    graph.node.retain(|node| !node.output.iter().any(|value| transposed.contains_key(value)));
    graph.value_info.retain(|info| !transposed.contains_key(&info.name));
    let known = file.model.opset_import.iter().any(|set| set.domain == CONTRIB);
    if !transposed.is_empty() && !known {
        file.model.opset_import.push(OperatorSetIdProto { domain: CONTRIB.to_owned(), version: 1 });
    }
    !transposed.is_empty()
}

fn is_product(node: &NodeProto) -> bool {
    node.domain.is_empty() && node.op_type == "MatMul"
}

fn swaps_axes(node: &NodeProto) -> bool {
    let swaps = |attribute: &AttributeProto| attribute.name == "perm" && attribute.ints == [1, 0];
    node.domain.is_empty() && node.op_type == "Transpose" && node.attribute.iter().any(swaps)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::factors;
    use densessm_bundle::{ExportOptions, export};
    use densessm_checkpoint::Checkpoint;
    use densessm_proto::{Precision, onnx::tensor_proto::DataType};
    use std::{ops::ControlFlow, path::Path};

    /// All matrices are then factors of products or tables of lookups, which both sessions read in place.
    #[test]
    fn no_matrix_is_transposed_on_a_gpu() {
        for model in ["densemamba-m2-both-gates", "mamba-m0-transformers", "denseretnet-m2-hub-layout-4-heads"] {
            for precision in [Precision::Fp16, Precision::Bf16] {
                let checkpoint = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens").join(model);
                let folder = tempfile::tempdir().unwrap();
                let out = folder.path().join("bundle");
                let options = ExportOptions::default().with_precision(precision);
                export(&Checkpoint::open(&checkpoint).unwrap(), &out, &options, |_| ControlFlow::Continue(())).unwrap();
                let bundle = Bundle::open(&out).unwrap();
                for kind in [GraphKind::Parallel, GraphKind::Recurrent] {
                    let what = format!("{model}, {precision}, {kind}");
                    let (file, replaced) =
                        read(&bundle, entry(&bundle, kind, Device::CUDA).unwrap(), Device::CUDA).unwrap();
                    assert!(replaced, "{what}");
                    let halves = [DataType::Float16, DataType::Bfloat16].map(i32::from);
                    let factors = factors(&file.graph);
                    let matrices = file.graph.initializer.iter().filter(|tensor| tensor.dims.len() == 2);
                    for tensor in matrices.filter(|tensor| halves.contains(&tensor.data_type)) {
                        assert!(factors.contains(tensor.name.as_str()), "{what}: {}", tensor.name);
                    }
                    let (portable, replaced) =
                        read(&bundle, entry(&bundle, kind, Device::CPU).unwrap(), Device::CPU).unwrap();
                    assert!(!replaced && portable.path != file.path, "{what}");
                }
            }
        }
    }
}
