//! The first value inside a graph that leaves the reference.
//!
//! Each graph is run alone on what the reference has at that point, so that an error is seen where it arises: the
//! parallel graph on a whole row beside a padded one, the recurrent graph on single tokens with the reference's states
//! before them.

use super::{Error, measure::Tally};
use crate::{
    Bundle, Device, HostTensor, Values,
    proto::{Architecture, GraphKind, states::LOGITS},
    runtime,
};
use densessm_reference::{Observer, Reference, State};
use densessm_session::Probe;
use ndarray::{Array2, ArrayView2, Axis};
use serde::Serialize;
use std::collections::BTreeMap;

/// Tokens that the graphs are looked into for.
const TOKENS: usize = 24;

/// Where a graph leaves the reference.
#[derive(Clone, Debug, Serialize)]
pub struct Mismatch {
    /// The runtime.
    pub runtime: String,
    /// The graph.
    pub graph: String,
    /// The layer, if it is in one.
    pub layer: Option<usize>,
    /// The module of the checkpoint whose output it is, or the state or output.
    pub tensor: String,
    /// Whether only a row that is shorter than its batch shows it.
    pub padded: bool,
    /// The largest error there.
    pub error: f64,
    /// The largest that is let pass.
    pub allowed: f64,
}

/// What the reference sees on its way, by name and in order.
#[derive(Default)]
struct Trace {
    order: Vec<String>,
    values: BTreeMap<String, Array2<f64>>,
}

impl Observer<f64> for Trace {
    fn see(&mut self, name: &str, _: usize, value: ArrayView2<'_, f64>) {
        match self.values.get_mut(name) {
            // The next chunk's rows; all have one width.
            Some(known) => drop(known.append(Axis(0), value)),
            None => {
                self.order.push(name.to_owned());
                self.values.insert(name.to_owned(), value.to_owned());
            }
        }
    }
}

/// Looks into both graphs, and returns what is found first in each that goes wrong.
pub(super) fn bisect(
    bundle: &Bundle,
    reference: &Reference,
    tokens: &[i64],
    choice: runtime::Choice,
    device: Device,
) -> Result<Vec<Mismatch>, Error> {
    let tokens = &tokens[..tokens.len().min(TOKENS)];
    let mut all = Vec::new();
    for kind in [GraphKind::Parallel, GraphKind::Recurrent] {
        if bundle.graph_path(kind).is_err() {
            continue;
        }
        let probes = probes(bundle.architecture(), kind);
        let names: Vec<String> = probes.values().cloned().collect();
        let mut probe = runtime::probe(bundle, choice, device, kind, &names)?;
        let found = match kind {
            GraphKind::Parallel => parallel(&mut *probe, reference, tokens, &probes)?,
            GraphKind::Recurrent => recurrent(&mut *probe, reference, tokens, &probes)?,
        };
        all.extend(found.map(|found| Mismatch { runtime: choice.name().to_owned(), graph: kind.to_string(), ..found }));
    }
    Ok(all)
}

fn parallel(
    probe: &mut dyn Probe,
    reference: &Reference,
    tokens: &[i64],
    probes: &BTreeMap<String, String>,
) -> Result<Option<Mismatch>, Error> {
    // From states that are not zero, so that a state that is left out shows.
    let (before, tokens) = tokens.split_at(tokens.len() / 3);
    let mut state = reference.initial_state::<f64>();
    reference.parallel(before, &mut state, &mut ());
    let width = tokens.len();
    let lengths = [width, width.div_ceil(2)];
    let mut given = inputs(&[tokens, tokens], &state);
    let counts = lengths.iter().map(|&length| length as i32).collect();
    given.insert("sequence_lengths".to_owned(), HostTensor { shape: vec![2], values: Values::Int32(counts) });
    let got = probe.run(given)?;
    for (row, &length) in lengths.iter().enumerate() {
        let (mut seen, mut state) = (Trace::default(), state.clone());
        reference.parallel(&tokens[..length], &mut state, &mut seen);
        let got = Row { got: &got, rows: lengths.len(), row, width, length };
        if let Some(found) = first(&got, &seen, &state, probes) {
            return Ok(Some(Mismatch { padded: length < width, ..found }));
        }
    }
    Ok(None)
}

fn recurrent(
    probe: &mut dyn Probe,
    reference: &Reference,
    tokens: &[i64],
    probes: &BTreeMap<String, String>,
) -> Result<Option<Mismatch>, Error> {
    let mut state = reference.initial_state::<f64>();
    for &token in tokens {
        let got = probe.run(inputs(&[&[token]], &state))?;
        let mut seen = Trace::default();
        reference.recurrent(token, &mut state, &mut seen);
        let got = Row { got: &got, rows: 1, row: 0, width: 1, length: 1 };
        if let Some(found) = first(&got, &seen, &state, probes) {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// One row of a batch that a graph was run on.
struct Row<'g> {
    got: &'g BTreeMap<String, HostTensor>,
    rows: usize,
    row: usize,
    /// Tokens of the batch.
    width: usize,
    /// Tokens of the row.
    length: usize,
}

impl Row<'_> {
    /// A value of the row, without what stands behind its last token if there is a vector for each: `[T, …]`.
    fn value(&self, name: &str, by_token: bool) -> Option<&[f32]> {
        let value = self.got.get(name)?;
        let Values::Float32(values) = &value.values else { return None };
        let each = values.len() / self.rows;
        let own = values.get(self.row * each..)?.get(..each)?;
        match by_token && value.shape.get(1) == Some(&self.width) {
            true => own.get(..each / self.width * self.length),
            false => Some(own),
        }
    }
}

/// Rows of tokens, all behind one state.
fn inputs(rows: &[&[i64]], state: &State<f64>) -> BTreeMap<String, HostTensor> {
    let batch = |shape: &[usize]| std::iter::once(rows.len()).chain(shape.iter().copied()).collect();
    let mut given: BTreeMap<String, HostTensor> = state
        .tensors
        .iter()
        .map(|(name, tensor)| {
            let one: Vec<f32> = tensor.iter().map(|&x| x as f32).collect();
            let values = one.repeat(rows.len());
            (name.clone(), HostTensor { shape: batch(tensor.shape()), values: Values::Float32(values) })
        })
        .collect();
    let ids = HostTensor { shape: vec![rows.len(), rows[0].len()], values: Values::Int64(rows.concat()) };
    given.insert("input_ids".to_owned(), ids);
    // Only models that count positions have this input.
    if !state.tensors.keys().any(|name| name.ends_with("conv_state")) && is_retention(state) {
        let past = HostTensor { shape: vec![rows.len()], values: Values::Int64(vec![state.position; rows.len()]) };
        given.insert("past_length".to_owned(), past);
    }
    given
}

/// Whether the states are those of heads: `[H, dk, dv]`.
fn is_retention(state: &State<f64>) -> bool {
    state.tensors.values().all(|tensor| tensor.ndim() == 3)
}

/// The first value, in the order of computation, that is further off than is let pass.
fn first(got: &Row<'_>, seen: &Trace, state: &State<f64>, probes: &BTreeMap<String, String>) -> Option<Mismatch> {
    let off = |values: &[f32], expected: &[f64]| {
        let mut tally = Tally::default();
        tally.add(values, expected);
        (tally.max() > tally.allowed()).then_some((tally.max(), tally.allowed()))
    };
    let found = |tensor: &str, (error, allowed): (f64, f64)| Mismatch {
        runtime: String::new(),
        graph: String::new(),
        layer: layer(tensor),
        tensor: tensor.to_owned(),
        padded: false,
        error,
        allowed,
    };
    for name in &seen.order {
        // The state of a layer is known when the layer is.
        if let Some(layer) = whole_layer(name) {
            for (state, expected) in state.tensors.iter().filter(|(name, _)| name.split('.').nth(1) == Some(layer)) {
                let present = state.replacen("past_key_values", "present", 1);
                let expected: Vec<f64> = expected.iter().copied().collect();
                if let Some(error) = got.value(&present, false).and_then(|value| off(value, &expected)) {
                    return Some(found(&present, error));
                }
            }
        }
        let Some(value) = probes.get(name).and_then(|probe| got.value(probe, true)) else { continue };
        let expected = &seen.values[name];
        let mut all: Vec<f64> = expected.iter().copied().collect();
        // Where logits are the last token's alone.
        if name == "logits" && value.len() == expected.ncols() {
            all = expected.rows().into_iter().next_back()?.to_vec();
        }
        if let Some(error) = off(value, &all) {
            return Some(found(name, error));
        }
    }
    None
}

/// The layer of `….layers.{l}` or `….layers.{l}.…`, or of a state.
fn layer(name: &str) -> Option<usize> {
    let mut parts = name.split('.').skip_while(|part| *part != "layers" && *part != "present");
    parts.nth(1)?.parse().ok()
}

/// The layer, if the name is that of a whole one.
fn whole_layer(name: &str) -> Option<&str> {
    let (_, layer) = name.split_once(".layers.")?;
    (!layer.contains('.')).then_some(layer)
}

/// Which of the graph's values is which of the reference's.
fn probes(architecture: &Architecture, kind: GraphKind) -> BTreeMap<String, String> {
    let inside = architecture.family().probes(kind).into_iter().map(|probe| (probe.module, probe.value));
    inside.chain([(LOGITS.to_owned(), LOGITS.to_owned())]).collect()
}
