//! `densessm run`

use super::load;
use crate::cli;
use anyhow::{Context, Result, bail};
use densessm::{Bundle, HostTensor, Values, proto::GraphKind};
use safetensors::{SafeTensors, tensor::TensorView};
use std::{collections::BTreeMap, path::Path};

pub(crate) fn run(arguments: &cli::Run) -> Result<()> {
    let bundle = Bundle::open(&arguments.bundle)?;
    let kind = GraphKind::from(arguments.graph);
    bundle.graph_path(kind)?;
    let inputs = read(&arguments.inputs)?;
    let mut model = load(&bundle, vec![kind], &arguments.on)?;
    let outputs = model.run(kind, inputs)?;
    write(&arguments.outputs, &outputs)
}

fn read(path: &Path) -> Result<BTreeMap<String, HostTensor>> {
    let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
    let tensors = SafeTensors::deserialize(&bytes).with_context(|| path.display().to_string())?;
    tensors
        .iter()
        .map(|(name, view)| {
            let dtype = view.dtype();
            let Some(values) = Values::from_le_bytes(dtype, view.data()) else {
                bail!("{}: {name}: expected F32, I64 or I32, got {dtype:?}", path.display());
            };
            Ok((name.to_owned(), HostTensor { shape: view.shape().to_vec(), values }))
        })
        .collect()
}

fn write(path: &Path, tensors: &BTreeMap<String, HostTensor>) -> Result<()> {
    let bytes: Vec<(&String, &HostTensor, Vec<u8>)> =
        tensors.iter().map(|(name, tensor)| (name, tensor, tensor.values.to_le_bytes())).collect();
    let views = bytes
        .iter()
        .map(|(name, tensor, bytes)| {
            Ok((*name, TensorView::new(tensor.values.safetensors(), tensor.shape.clone(), bytes)?))
        })
        .collect::<Result<Vec<_>>>()?;
    let serialized = safetensors::serialize(views, None)?;
    densessm::write_atomically(path, &serialized).with_context(|| path.display().to_string())
}
