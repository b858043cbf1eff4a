//! What a model's graphs take and give, worked out from its dimensions alone: the measure of a manifest, which may come
//! from anywhere.

use densessm_proto::{
    Architecture, DType, Dimension, GraphEntry, GraphKind, LogitsMode, Manifest, TensorEntry,
    states::{self, BATCH, INPUT_IDS, LOGITS, PAST_LENGTH, PRESENT_LENGTH, SEQUENCE, SEQUENCE_LENGTHS},
};

/// The entry that a manifest must hold for a graph of a model, but for the order of inputs and outputs.
pub fn signature(architecture: &Architecture, kind: GraphKind, logits: LogitsMode) -> GraphEntry {
    let size = Dimension::Size;
    let symbol = |name: &str| Dimension::Symbol(name.to_owned());
    let entry = |name: &str, dtype, tail: &[Dimension]| TensorEntry {
        name: name.to_owned(),
        dtype,
        shape: std::iter::once(symbol(BATCH)).chain(tail.iter().cloned()).collect(),
    };
    let counter = |name: &str| architecture.counts_positions().then(|| entry(name, DType::I64, &[]));
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
    GraphEntry { kind, file: kind.file().to_owned(), inputs: inputs.collect(), outputs: outputs.collect() }
}

/// Checks that a manifest's dimensions can be, and that its graphs take and give what they must.
///
/// # Errors
/// Saying what is wrong, expected and got.
pub(crate) fn check(manifest: &Manifest) -> Result<(), String> {
    let architecture = &manifest.architecture;
    check_sizes(architecture)?;
    for (index, graph) in manifest.graphs.iter().enumerate() {
        let kind = graph.kind;
        if manifest.graphs[..index].iter().any(|other| other.kind == kind) {
            return Err(format!("graphs: expected one {kind} graph, got several"));
        }
        // A layer count is a number that anyone can write; states are laid out only for as many layers as are listed.
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

fn check_sizes(architecture: &Architecture) -> Result<(), String> {
    let (sizes, state): (Vec<(&str, usize)>, Vec<usize>) = match architecture {
        Architecture::DenseMamba(a) => (
            vec![
                ("vocab_size", a.vocab_size),
                ("hidden_size", a.hidden_size),
                ("num_hidden_layers", a.num_hidden_layers),
                ("intermediate_size", a.intermediate_size),
                ("state_size", a.state_size),
                ("conv_kernel", a.conv_kernel),
            ],
            vec![a.num_hidden_layers, a.intermediate_size, a.state_size.max(a.conv_kernel)],
        ),
        Architecture::DenseRetNet(a) => {
            let (heads, keys, values) = (a.num_attention_heads, a.query_key_dim, a.value_dim);
            if heads == 0 || keys % heads != 0 || values % heads != 0 {
                return Err(format!("architecture: expected heads that divide {keys} and {values}, got {heads}"));
            }
            (
                vec![
                    ("vocab_size", a.vocab_size),
                    ("hidden_size", a.hidden_size),
                    ("num_hidden_layers", a.num_hidden_layers),
                    ("query_key_dim", keys),
                    ("value_dim", values),
                ],
                vec![a.num_hidden_layers, keys, values],
            )
        }
    };
    if let Some((name, _)) = sizes.iter().find(|(_, size)| *size == 0) {
        return Err(format!("architecture: expected a {name} of at least 1, got 0"));
    }
    // Two tensors of four-byte numbers a layer, and a counter, must have a size that can be counted.
    match state.iter().try_fold(16_usize, |bytes, &size| bytes.checked_mul(size)) {
        Some(_) => Ok(()),
        None => Err(format!("architecture: expected states that fit into memory, got {state:?} numbers")),
    }
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
