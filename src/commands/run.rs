//! `densessm run`

use super::load;
use crate::cli;
use anyhow::{Context, Result, bail};
use densessm::{Bundle, HostTensor, Values, proto::GraphKind};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
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
            let values = match view.dtype() {
                Dtype::F32 => Values::Float32(numbers(view.data(), f32::from_le_bytes)),
                Dtype::I64 => Values::Int64(numbers(view.data(), i64::from_le_bytes)),
                Dtype::I32 => Values::Int32(numbers(view.data(), i32::from_le_bytes)),
                other => bail!("{}: {name}: expected F32, I64 or I32, got {other:?}", path.display()),
            };
            Ok((name.to_owned(), HostTensor { shape: view.shape().to_vec(), values }))
        })
        .collect()
}

fn numbers<T, const N: usize>(bytes: &[u8], number: fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks().0.iter().map(|&chunk| number(chunk)).collect()
}

fn write(path: &Path, tensors: &BTreeMap<String, HostTensor>) -> Result<()> {
    let bytes: Vec<(&String, &[usize], Dtype, Vec<u8>)> = tensors
        .iter()
        .map(|(name, tensor)| {
            let (dtype, bytes) = match &tensor.values {
                Values::Float32(values) => (Dtype::F32, values.iter().flat_map(|v| v.to_le_bytes()).collect()),
                Values::Int64(values) => (Dtype::I64, values.iter().flat_map(|v| v.to_le_bytes()).collect()),
                Values::Int32(values) => (Dtype::I32, values.iter().flat_map(|v| v.to_le_bytes()).collect()),
            };
            (name, tensor.shape.as_slice(), dtype, bytes)
        })
        .collect();
    let views = bytes
        .iter()
        .map(|(name, shape, dtype, bytes)| Ok((*name, TensorView::new(*dtype, shape.to_vec(), bytes)?)))
        .collect::<Result<Vec<_>>>()?;
    // Beside the target first, so that a full disk leaves no half of a file under its name.
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder).with_context(|| folder.display().to_string())?;
    let serialized = safetensors::serialize(views, None)?;
    std::io::Write::write_all(&mut file, &serialized).with_context(|| path.display().to_string())?;
    file.persist(path).with_context(|| path.display().to_string())?;
    Ok(())
}
