//! `export`: from a checkpoint's folder to a bundle's.

use crate::{Error, folder::Folder, plan::WeightLayout, weights};
use densessm_checkpoint::Checkpoint;
use densessm_graph::Model;
use densessm_models::GraphOptions;
use densessm_proto::{
    Architecture, Dimension, FileEntry, GraphEntry, GraphKind, LogitsMode, Lowering, Manifest, Precision, TensorEntry,
    manifest::{FORMAT_VERSION, MANIFEST_FILE, WEIGHTS_FILE},
    states,
};
use sha2::{Digest, Sha256};
use std::{
    fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
};

/// Files of a checkpoint that are copied into a bundle where present.
const COMPANIONS: [&str; 8] = [
    "chat_template.jinja",
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "tokenizer.model",
];

/// How a checkpoint is exported.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExportOptions {
    /// The graphs to write.
    pub graphs: Vec<GraphKind>,
    /// How custom operators are written.
    pub lowering: Lowering,
    /// Which logits the parallel graph returns.
    pub logits: LogitsMode,
    /// Version of ONNX's operator set.
    pub opset: i64,
    /// Whether an existing bundle is replaced.
    pub force: bool,
}

impl Default for ExportOptions {
    /// Both graphs, functions, the last token's logits, operator set 18; nothing is replaced.
    fn default() -> Self {
        Self {
            graphs: vec![GraphKind::Parallel, GraphKind::Recurrent],
            lowering: Lowering::Function,
            logits: LogitsMode::Last,
            opset: 18,
            force: false,
        }
    }
}

impl ExportOptions {
    /// The same options with these graphs.
    #[must_use]
    pub fn with_graphs(self, graphs: impl Into<Vec<GraphKind>>) -> Self {
        Self { graphs: graphs.into(), ..self }
    }

    /// The same options with another lowering.
    #[must_use]
    pub fn with_lowering(self, lowering: Lowering) -> Self {
        Self { lowering, ..self }
    }

    /// The same options with other logits.
    #[must_use]
    pub fn with_logits(self, logits: LogitsMode) -> Self {
        Self { logits, ..self }
    }

    /// The same options with another operator set.
    #[must_use]
    pub fn with_opset(self, opset: i64) -> Self {
        Self { opset, ..self }
    }

    /// The same options, replacing an existing bundle or not.
    #[must_use]
    pub fn with_force(self, force: bool) -> Self {
        Self { force, ..self }
    }
}

/// How much of the weights has been written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExportProgress {
    /// Bytes written.
    pub done: u64,
    /// Bytes in all.
    pub total: u64,
}

/// The result of [`export`]: a bundle.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Exported {
    /// Its folder.
    pub path: PathBuf,
    /// Its manifest.
    pub manifest: Manifest,
}

/// Exports a checkpoint to a bundle.
///
/// `progress` is called after each piece of weights; if it breaks, the export ends with [`Error::Stopped`].
///
/// # Errors
/// When the checkpoint is not sound, the target exists already, or a file cannot be read or written. Nothing is left
/// behind then.
///
/// # Examples
/// ```no_run
/// use densessm_bundle::{ExportOptions, export};
/// use densessm_checkpoint::Checkpoint;
/// use densessm_proto::LogitsMode;
/// use std::{ops::ControlFlow, path::Path};
///
/// let checkpoint = Checkpoint::open(Path::new("model"))?;
/// let options = ExportOptions::default().with_logits(LogitsMode::All);
/// let exported = export(&checkpoint, Path::new("bundle"), &options, |progress| {
///     println!("{} of {} bytes", progress.done, progress.total);
///     ControlFlow::Continue(())
/// })?;
/// println!("{}", exported.path.display());
/// # Ok::<(), densessm_bundle::Error>(())
/// ```
pub fn export(
    checkpoint: &Checkpoint,
    out: &Path,
    options: &ExportOptions,
    progress: impl FnMut(ExportProgress) -> ControlFlow<()>,
) -> Result<Exported, Error> {
    let architecture = checkpoint.architecture();
    let graph_options =
        GraphOptions::default().with_opset(options.opset).with_lowering(options.lowering).with_logits(options.logits);
    let models: Vec<(GraphKind, Model)> = options
        .graphs
        .iter()
        .map(|&kind| Ok((kind, densessm_models::graph(architecture, kind, graph_options)?)))
        .collect::<Result<_, Error>>()?;
    let plan = WeightLayout::new(models.iter().map(|(_, model)| model))?;
    let parts = plan.weights().iter().flat_map(|weight| &weight.parts);
    checkpoint.account(parts.map(|part| (part.name.as_str(), part.shape.as_slice())))?;

    let folder = Folder::create(out, MANIFEST_FILE, options.force)?;
    let mut files = Vec::new();
    for (kind, model) in &models {
        let bytes = model.to_bytes_external(|initializer| plan.place(initializer));
        files.push(write_file(folder.path(), kind.file(), &bytes)?);
    }
    let sha256 = weights::write(checkpoint, &plan, &folder.path().join(WEIGHTS_FILE), progress)?;
    files.push(FileEntry { name: WEIGHTS_FILE.to_owned(), size: plan.size, sha256 });
    for name in COMPANIONS {
        let path = checkpoint.dir().join(name);
        if path.is_file() {
            let bytes = fs::read(&path).map_err(Error::io(&path))?;
            files.push(write_file(folder.path(), name, &bytes)?);
        }
    }
    let manifest = manifest(architecture, options, &models, files);
    let json = serde_json::to_vec_pretty(&manifest)
        .map_err(|error| Error::Io { path: MANIFEST_FILE.into(), error: error.into() })?;
    write_file(folder.path(), MANIFEST_FILE, &json)?;
    Ok(Exported { path: folder.publish()?, manifest })
}

fn write_file(folder: &Path, name: &str, bytes: &[u8]) -> Result<FileEntry, Error> {
    let path = folder.join(name);
    fs::write(&path, bytes).map_err(Error::io(&path))?;
    let sha256 = weights::hex(&Sha256::digest(bytes));
    Ok(FileEntry { name: name.to_owned(), size: bytes.len() as u64, sha256 })
}

fn manifest(
    architecture: &Architecture,
    options: &ExportOptions,
    models: &[(GraphKind, Model)],
    files: Vec<FileEntry>,
) -> Manifest {
    let graphs = models.iter().map(|(kind, model)| GraphEntry {
        kind: *kind,
        file: kind.file().to_owned(),
        inputs: model.inputs().map(entry).collect(),
        outputs: model.outputs().map(entry).collect(),
    });
    Manifest {
        format_version: FORMAT_VERSION,
        tool_version: env!("CARGO_PKG_VERSION").to_owned(),
        architecture: architecture.clone(),
        precision: Precision::Fp32,
        opset: options.opset,
        lowering: options.lowering,
        logits: options.logits,
        graphs: graphs.collect(),
        state_bytes_per_sequence: states::bytes_per_sequence(architecture) as u64,
        files,
    }
}

fn entry((name, tensor): (&str, &densessm_graph::TensorType)) -> TensorEntry {
    let shape = tensor.shape.iter().map(|dim| match dim.known() {
        Some(size) => Dimension::Size(size),
        None => Dimension::Symbol(dim.to_string()),
    });
    TensorEntry { name: name.to_owned(), dtype: tensor.dtype, shape: shape.collect() }
}
