//! The inputs of one call by name: compared with the graph's entry in the manifest, and completed.

use crate::{Bundle, Error, HostTensor, Values};
use densessm_proto::{
    DType, Dimension, GraphKind, TensorEntry,
    states::{INPUT_IDS, PAST_LENGTH, SEQUENCE_LENGTHS},
};
use std::collections::{BTreeMap, HashMap};

/// Checks the inputs of a graph and completes them, in the order in which the graph lists them.
///
/// Absent states are zeros, absent counters 0, absent `sequence_lengths` the full width. A symbol must have one size
/// in all inputs; token ids must be in the vocabulary, lengths in 1 … width.
///
/// # Errors
/// When an input is unknown, missing, of another type or shape, or a number in it is out of range.
pub fn complete(
    bundle: &Bundle,
    kind: GraphKind,
    mut given: BTreeMap<String, HostTensor>,
) -> Result<Vec<(String, HostTensor)>, Error> {
    bundle.graph_path(kind)?;
    let entries = bundle.manifest().graph(kind).map_or(&[][..], |graph| &graph.inputs);
    if let Some(name) = given.keys().find(|name| entries.iter().all(|entry| entry.name != **name)) {
        let known: Vec<&str> = entries.iter().map(|entry| entry.name.as_str()).take(4).collect();
        return wrong(name, format!("no input of the {kind} graph, which are {}, …", known.join(", ")));
    }
    let mut sizes = HashMap::new();
    for entry in entries {
        if let Some(tensor) = given.get(&entry.name) {
            unify(entry, tensor, &mut sizes)?;
        }
    }
    entries
        .iter()
        .map(|entry| {
            let tensor = match given.remove(&entry.name) {
                Some(tensor) => tensor,
                None if entry.name == INPUT_IDS => return wrong(INPUT_IDS, "missing".to_owned()),
                None => absent(entry, &sizes)?,
            };
            in_range(bundle, &entry.name, &tensor, &sizes)?;
            Ok((entry.name.clone(), tensor))
        })
        .collect()
}

fn wrong<T>(name: &str, problem: String) -> Result<T, Error> {
    Err(Error::Input { name: name.to_owned(), problem })
}

/// Checks type and shape, and records the sizes of symbols.
fn unify<'a>(entry: &'a TensorEntry, tensor: &HostTensor, sizes: &mut HashMap<&'a str, usize>) -> Result<(), Error> {
    let mut expected = Vec::new();
    for (axis, dimension) in entry.shape.iter().enumerate() {
        let got = tensor.shape.get(axis).copied();
        expected.push(match dimension {
            Dimension::Size(size) => *size,
            Dimension::Symbol(symbol) => *sizes.entry(symbol).or_insert(got.unwrap_or(0)),
        });
    }
    let elements: usize = tensor.shape.iter().product();
    if tensor.dtype() == entry.dtype && tensor.shape == expected && tensor.values.len() == elements && elements > 0 {
        return Ok(());
    }
    let got = format!("{} {:?}", tensor.dtype(), tensor.shape);
    wrong(&entry.name, format!("expected {} {expected:?}, got {got}", entry.dtype))
}

fn absent(entry: &TensorEntry, sizes: &HashMap<&str, usize>) -> Result<HostTensor, Error> {
    let shape = entry
        .shape
        .iter()
        .map(|dimension| match dimension {
            Dimension::Size(size) => Ok(*size),
            Dimension::Symbol(symbol) => match sizes.get(symbol.as_str()) {
                Some(size) => Ok(*size),
                None => wrong(&entry.name, format!("missing, and no other input has the size of {symbol}")),
            },
        })
        .collect::<Result<Vec<_>, _>>()?;
    let elements = shape.iter().product();
    let values = match entry.dtype {
        DType::F32 => Values::Float32(vec![0.0; elements]),
        DType::I64 => Values::Int64(vec![0; elements]),
        DType::I32 => Values::Int32(vec![width(sizes); elements]),
        other => return wrong(&entry.name, format!("missing, and there is no default of type {other}")),
    };
    Ok(HostTensor { shape, values })
}

/// Returns the number of tokens per row.
fn width(sizes: &HashMap<&str, usize>) -> i32 {
    sizes.get(densessm_proto::states::SEQUENCE).map_or(1, |&width| i32::try_from(width).unwrap_or(i32::MAX))
}

fn in_range(bundle: &Bundle, name: &str, tensor: &HostTensor, sizes: &HashMap<&str, usize>) -> Result<(), Error> {
    match (name, &tensor.values) {
        (INPUT_IDS, Values::Int64(ids)) => check_tokens(bundle, ids),
        (SEQUENCE_LENGTHS, Values::Int32(lengths)) => {
            match lengths.iter().find(|length| !(1..=width(sizes)).contains(*length)) {
                Some(length) => wrong(name, format!("expected lengths of 1 to {}, got {length}", width(sizes))),
                None => Ok(()),
            }
        }
        (PAST_LENGTH, Values::Int64(lengths)) => match lengths.iter().find(|&&length| length < 0) {
            Some(length) => wrong(name, format!("expected counts of tokens, got {length}")),
            None => Ok(()),
        },
        _ => Ok(()),
    }
}

/// Checks that every token is in the vocabulary.
///
/// # Errors
/// Naming the first token that is not.
pub fn check_tokens(bundle: &Bundle, ids: &[i64]) -> Result<(), Error> {
    let vocabulary = bundle.architecture().vocab_size();
    let known = |id: i64| usize::try_from(id).is_ok_and(|id| id < vocabulary);
    match ids.iter().position(|&id| !known(id)) {
        Some(at) => {
            let problem = format!("token {at}: expected an id from 0 to {}, got {}", vocabulary - 1, ids[at]);
            wrong(INPUT_IDS, problem)
        }
        None => Ok(()),
    }
}
