//! `export`: from a checkpoint's folder to a bundle's.

use crate::{Error, Target, folder::Folder, plan::WeightLayout, target::README_FILE, weights};
use densessm_checkpoint::Checkpoint;
use densessm_graph::Model;
use densessm_models::GraphOptions;
use densessm_proto::{
    Architecture, DType, Dimension, FileEntry, GraphEntry, GraphKind, LogitsMode, Lowering, Manifest, Precision,
    TensorEntry,
    manifest::{FORMAT_VERSION, MANIFEST_FILE, WEIGHTS_FILE, fused_step_file},
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
    /// How matrices are stored. In half precision each graph is written twice: with fp32 activations, and with
    /// activations in the type of the matrices. Mamba and DenseMamba also get the fused step, for GPUs.
    pub precision: Precision,
    /// How custom operators are written.
    pub lowering: Lowering,
    /// Which logits the parallel graph returns.
    pub logits: LogitsMode,
    /// Version of ONNX's operator set.
    pub opset: i64,
    /// The runtime outside this project that the bundle is meant for, if any.
    pub target: Option<Target>,
    /// Whether an existing bundle is replaced.
    pub force: bool,
}

impl Default for ExportOptions {
    /// Both graphs, fp32, functions, the last token's logits, operator set 18; nothing is replaced.
    fn default() -> Self {
        Self {
            graphs: vec![GraphKind::Parallel, GraphKind::Recurrent],
            precision: Precision::Fp32,
            lowering: Lowering::Function,
            logits: LogitsMode::Last,
            opset: 18,
            target: None,
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

    /// The same options with another precision.
    #[must_use]
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
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

    /// The same options for a runtime outside this project, with the lowering that it needs.
    #[must_use]
    pub fn with_target(self, target: Target) -> Self {
        Self { target: Some(target), lowering: target.lowering(), ..self }
    }

    fn check(&self) -> Result<(), Error> {
        match self.target {
            Some(target) if self.lowering != target.lowering() => {
                let (needed, got) = (target.lowering(), self.lowering);
                let problem =
                    format!("expected lowering {needed} for the target {target}, got {got}; leave one of them out");
                Err(Error::Options { problem })
            }
            _ => Ok(()),
        }
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
/// When the options contradict each other, the checkpoint is not sound, the target exists already, or a file cannot be read or written. Nothing is left
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
    options.check()?;
    let architecture = checkpoint.architecture();
    let models = graphs(architecture, options)?;
    let plan = WeightLayout::new(models.iter().map(|graph| &graph.model))?;
    let parts = plan.weights().iter().flat_map(|weight| &weight.parts);
    checkpoint.account(parts.map(|part| (part.name.as_str(), part.shape.as_slice())))?;

    let folder = Folder::create(out, MANIFEST_FILE, options.force)?;
    let mut files = Vec::new();
    for graph in &models {
        let bytes = graph.model.to_bytes_external(|initializer| plan.place(initializer));
        files.push(write_file(folder.path(), &graph.file(), &bytes)?);
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
    let mut manifest = manifest(architecture, options, &models, files);
    if let Some(target) = options.target {
        manifest.files.push(write_file(folder.path(), README_FILE, target.readme(&manifest).as_bytes())?);
    }
    let json = serde_json::to_vec_pretty(&manifest)
        .map_err(|error| Error::Io { path: MANIFEST_FILE.into(), error: error.into() })?;
    write_file(folder.path(), MANIFEST_FILE, &json)?;
    Ok(Exported { path: folder.publish()?, manifest })
}

/// A graph of the bundle.
struct GraphModel {
    kind: GraphKind,
    activations: DType,
    fused: bool,
    model: Model,
}

impl GraphModel {
    fn file(&self) -> String {
        if self.fused { fused_step_file(self.activations) } else { self.kind.file_with(self.activations) }
    }
}

/// The graphs with fp32 activations, then those in half precision, then the fused step where the model has one.
fn graphs(architecture: &Architecture, options: &ExportOptions) -> Result<Vec<GraphModel>, Error> {
    let matrices = options.precision.matrices();
    let graph_options = GraphOptions::default()
        .with_opset(options.opset)
        .with_lowering(options.lowering)
        .with_logits(options.logits)
        .with_matrices(matrices);
    let half = (matrices != DType::F32).then_some(matrices);
    let types = std::iter::once(DType::F32).chain(half);
    let mut models = types
        .flat_map(|activations| options.graphs.iter().map(move |&kind| (kind, activations)))
        .map(|(kind, activations)| {
            let options = graph_options.with_activations(activations);
            let model = densessm_models::graph(architecture, kind, options)?;
            Ok(GraphModel { kind, activations, fused: false, model })
        })
        .collect::<Result<Vec<_>, Error>>()?;
    let kind = GraphKind::Recurrent;
    // Written in standard operators, the fused step would be the recurrent graph.
    if let Some(activations) = half
        && options.lowering == Lowering::Function
        && options.graphs.contains(&kind)
        && let Some(model) = densessm_models::step_graph(architecture, graph_options.with_activations(activations))?
    {
        models.push(GraphModel { kind, activations, fused: true, model });
    }
    Ok(models)
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
    models: &[GraphModel],
    files: Vec<FileEntry>,
) -> Manifest {
    let graphs = models.iter().map(|graph| GraphEntry {
        kind: graph.kind,
        file: graph.file(),
        activations: graph.activations,
        fused: graph.fused,
        inputs: graph.model.inputs().map(entry).collect(),
        outputs: graph.model.outputs().map(entry).collect(),
    });
    Manifest {
        format_version: FORMAT_VERSION,
        tool_version: env!("CARGO_PKG_VERSION").to_owned(),
        architecture: architecture.clone(),
        precision: options.precision,
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
