//! The inputs and outputs of a model's graphs, derived from its dimensions alone: what a manifest, which may come from
//! anywhere, is checked against.

use densessm_proto::{
    Architecture, DType, Dimension, GraphEntry, GraphKind, LogitsMode, Manifest, Precision, TensorEntry,
    states::{self, BATCH, INPUT_IDS, LENGTH_DTYPE, LOGITS, PAST_LENGTH, PRESENT_LENGTH, SEQUENCE, SEQUENCE_LENGTHS},
};

/// More bytes of states per sequence than this is a mistake. The states of a whole batch can still be counted.
const MOST_STATE_BYTES: usize = usize::MAX / 16;

/// The entry that a manifest must hold for a graph of a model with fp32 activations, except for the order of inputs and
/// outputs. Those of a graph with other activations are the same.
pub fn signature(architecture: &Architecture, kind: GraphKind, logits: LogitsMode) -> GraphEntry {
    let size = Dimension::Size;
    let symbol = |name: &str| Dimension::Symbol(name.to_owned());
    let entry = |name: &str, dtype, tail: &[Dimension]| TensorEntry {
        name: name.to_owned(),
        dtype,
        shape: std::iter::once(symbol(BATCH)).chain(tail.iter().cloned()).collect(),
    };
    let counter = |name: &str| architecture.counts_positions().then(|| entry(name, LENGTH_DTYPE, &[]));
    let layout = states::layout(architecture);
    let parallel = kind == GraphKind::Parallel;
    let tokens = if parallel { symbol(SEQUENCE) } else { size(1) };
    let positions = if parallel && logits == LogitsMode::All { symbol(SEQUENCE) } else { size(1) };

    let inputs = std::iter::once(entry(INPUT_IDS, DType::I64, &[tokens]))
        .chain(parallel.then(|| entry(SEQUENCE_LENGTHS, DType::I32, &[])))
        .chain(counter(PAST_LENGTH))
        .chain(layout.iter().map(|state| state.entry(&state.past)));
    let scores = entry(LOGITS, DType::F32, &[positions, size(architecture.vocab_size())]);
    let outputs = std::iter::once(scores)
        .chain(layout.iter().map(|state| state.entry(&state.present)))
        .chain(counter(PRESENT_LENGTH));
    GraphEntry {
        kind,
        file: kind.file().to_owned(),
        activations: DType::F32,
        fused: false,
        inputs: inputs.collect(),
        outputs: outputs.collect(),
    }
}

/// Checks that a manifest's dimensions are possible, and that its graphs have the inputs and outputs of such a model.
///
/// # Errors
/// Saying what is wrong, expected and got.
pub(crate) fn check(manifest: &Manifest) -> Result<(), String> {
    let architecture = &manifest.architecture;
    check_sizes(architecture)?;
    for (index, graph) in manifest.graphs.iter().enumerate() {
        let kind = graph.kind;
        check_form(graph, manifest.precision)?;
        let form = |graph: &GraphEntry| (graph.kind, graph.activations, graph.fused);
        if manifest.graphs[..index].iter().any(|other| form(other) == form(graph)) {
            return Err(format!(
                "graphs: expected one {kind} graph with {} activations, got several",
                graph.activations
            ));
        }
        // Anyone can write a large layer count; states are laid out only for as many layers as the inputs can belong to.
        let layers = architecture.num_hidden_layers();
        if layers > graph.inputs.len() {
            return Err(format!("the {kind} graph: expected inputs for {layers} layers, got {}", graph.inputs.len()));
        }
        let expected = signature(architecture, kind, manifest.logits);
        for (what, expected, got) in
            [("inputs", expected.inputs, &graph.inputs), ("outputs", expected.outputs, &graph.outputs)]
        {
            for expected in &expected {
                match got.iter().find(|got| got.name == expected.name) {
                    Some(got) if got == expected => {}
                    Some(got) => {
                        return Err(format!(
                            "the {kind} graph's {what}: expected {}, got {}",
                            show(expected),
                            show(got)
                        ));
                    }
                    None => return Err(format!("the {kind} graph's {what}: expected {} among them", show(expected))),
                }
            }
            if expected.len() != got.len() {
                return Err(format!("the {kind} graph's {what}: expected {}, got {}", expected.len(), got.len()));
            }
        }
    }
    if manifest.graphs.is_empty() {
        return Err("graphs: expected at least one".to_owned());
    }
    let (expected, got) = (states::bytes_per_sequence(architecture) as u64, manifest.state_bytes_per_sequence);
    if expected != got {
        return Err(format!("state_bytes_per_sequence: expected {expected}, got {got}"));
    }
    Ok(())
}

/// Checks that a bundle of this precision can contain such a graph.
fn check_form(graph: &GraphEntry, precision: Precision) -> Result<(), String> {
    let GraphEntry { kind, activations, fused, .. } = graph;
    if ![DType::F32, precision.matrices()].contains(activations) {
        return Err(format!("the {kind} graph: expected activations in fp32 or {precision}, got {activations}"));
    }
    if *fused && *kind != GraphKind::Recurrent {
        return Err(format!("the {kind} graph: expected a fused graph to be recurrent"));
    }
    Ok(())
}

fn check_sizes(architecture: &Architecture) -> Result<(), String> {
    let family = architecture.family();
    if let Some((name, _)) = family.sizes().into_iter().find(|(_, size)| *size == 0) {
        return Err(format!("architecture: expected a {name} of at least 1, got 0"));
    }
    family.check().map_err(|problem| format!("architecture: {problem}"))?;
    let bytes = states::bytes_per_sequence(architecture);
    if bytes > MOST_STATE_BYTES {
        let got = if bytes == usize::MAX { "more than can be counted".to_owned() } else { bytes.to_string() };
        return Err(format!(
            "architecture: expected states that fit into memory, at most {MOST_STATE_BYTES} bytes, got {got}"
        ));
    }
    Ok(())
}

/// A name with its type and shape.
fn show(entry: &TensorEntry) -> String {
    let shape: Vec<String> = entry
        .shape
        .iter()
        .map(|dimension| match dimension {
            Dimension::Size(size) => size.to_string(),
            Dimension::Symbol(symbol) => symbol.clone(),
        })
        .collect();
    format!("{} {} [{}]", entry.name, entry.dtype, shape.join(", "))
}
