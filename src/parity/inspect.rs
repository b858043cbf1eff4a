//! Values inside one graph, compared with the reference at the probes that the contract states.
//!
//! A graph is run on its own from the reference's states, so that an error shows where it arises: the parallel graph on
//! a whole row beside a padded one, the recurrent graph on single tokens.

use super::{
    Error,
    measure::{ErrorPoint, Tally},
    rounding::arithmetic,
};
use crate::{
    Bundle, Device, HostTensor, Values,
    proto::{self, GraphKind, Precision, ProbeLayout, Tolerance, ToleranceClass, states},
    runtime,
};
use densessm_reference::{Observer, Reference, State};
use ndarray::{Array2, ArrayView2, Axis};
use std::{collections::BTreeMap, ops::ControlFlow};

/// The number of tokens on which a graph is inspected: it bounds the memory that probed values take.
const TOKENS: usize = 24;

/// A graph whose probed values can be compared with the reference.
pub(super) struct Inspection<'a> {
    bundle: &'a Bundle,
    reference: &'a Reference,
    tokens: &'a [i64],
    kind: GraphKind,
    probes: Vec<proto::Probe>,
    graph: Box<dyn densessm_session::Probe>,
    /// The precision in which the device computes.
    arithmetic: Precision,
}

/// One probed value beside the reference's.
pub(super) struct Comparison<'p> {
    pub(super) probe: &'p proto::Probe,
    /// Whether the row is shorter than its batch.
    pub(super) padded: bool,
    /// The error, at the probe's layer.
    pub(super) point: ErrorPoint,
}

/// Receives the comparisons in the order of computation, until it breaks.
type Visitor<'v> = &'v mut dyn FnMut(&Comparison<'_>) -> ControlFlow<()>;

impl<'a> Inspection<'a> {
    /// Loads a graph with those probes as outputs that `select` accepts.
    pub(super) fn load(
        bundle: &'a Bundle,
        reference: &'a Reference,
        tokens: &'a [i64],
        (choice, device): (runtime::Choice, Device),
        kind: GraphKind,
        select: impl Fn(&proto::Probe) -> bool,
    ) -> Result<Self, Error> {
        let mut probes =
            proto::probes(bundle.architecture(), kind, bundle.manifest().lowering, bundle.manifest().precision);
        probes.retain(select);
        let names: Vec<String> = probes.iter().map(|probe| probe.value.clone()).collect();
        let graph = runtime::probe(bundle, choice, device, kind, &names)?;
        let tokens = &tokens[..tokens.len().min(TOKENS)];
        let arithmetic = arithmetic(bundle.manifest().precision, device);
        Ok(Self { bundle, reference, tokens, kind, probes, graph, arithmetic })
    }

    /// Runs the graph and compares the probed values.
    pub(super) fn run(&mut self, visit: Visitor<'_>) -> Result<(), Error> {
        match self.kind {
            GraphKind::Parallel => self.parallel(visit),
            GraphKind::Recurrent => self.recurrent(visit),
        }
    }

    fn parallel(&mut self, visit: Visitor<'_>) -> Result<(), Error> {
        // The states before are not zero, so that a state that is ignored shows.
        let (before, tokens) = self.tokens.split_at(self.tokens.len() / 3);
        let mut state = self.reference.initial_state::<f64>();
        self.reference.parallel(before, &mut state, &mut ());
        let width = tokens.len();
        let lengths = [width, width.div_ceil(2)];
        let mut inputs = self.inputs(&[tokens, tokens], &state)?;
        let counts = lengths.iter().map(|&length| length as i32).collect();
        let counts = HostTensor { shape: vec![lengths.len()], values: Values::Int32(counts) };
        inputs.insert(states::SEQUENCE_LENGTHS.to_owned(), counts);
        let outputs = self.graph.run(inputs)?;
        for (row, &length) in lengths.iter().enumerate() {
            let (mut recorded, mut state) = (Recorded::default(), state.clone());
            self.reference.parallel(&tokens[..length], &mut state, &mut recorded);
            let row = Row { outputs: &outputs, rows: lengths.len(), row, width, length };
            if self.compare(&row, &recorded, &state, visit)?.is_break() {
                break;
            }
        }
        Ok(())
    }

    fn recurrent(&mut self, visit: Visitor<'_>) -> Result<(), Error> {
        let mut state = self.reference.initial_state::<f64>();
        for &token in self.tokens {
            let inputs = self.inputs(&[&[token]], &state)?;
            let outputs = self.graph.run(inputs)?;
            let mut recorded = Recorded::default();
            self.reference.recurrent(token, &mut state, &mut recorded);
            let row = Row { outputs: &outputs, rows: 1, row: 0, width: 1, length: 1 };
            if self.compare(&row, &recorded, &state, visit)?.is_break() {
                break;
            }
        }
        Ok(())
    }

    /// The inputs for rows of tokens that all follow one state.
    fn inputs(&self, rows: &[&[i64]], state: &State<f64>) -> Result<BTreeMap<String, HostTensor>, Error> {
        let architecture = self.bundle.architecture();
        let mut inputs = BTreeMap::new();
        for proto::StateTensor { past, shape, .. } in states::layout(architecture) {
            let tensor = state.tensors.get(&past).filter(|tensor| tensor.shape() == shape);
            let expected = || format!("expected a state of shape {shape:?} in the reference, got none");
            let tensor = tensor.ok_or_else(|| self.wrong(&past, expected()))?;
            let one: Vec<f32> = tensor.iter().map(|&x| x as f32).collect();
            let shape = std::iter::once(rows.len()).chain(shape).collect();
            inputs.insert(past, HostTensor { shape, values: Values::Float32(one.repeat(rows.len())) });
        }
        let width = rows.first().map_or(0, |row| row.len());
        let ids = HostTensor { shape: vec![rows.len(), width], values: Values::Int64(rows.concat()) };
        inputs.insert(states::INPUT_IDS.to_owned(), ids);
        if architecture.counts_positions() {
            let past = HostTensor { shape: vec![rows.len()], values: Values::Int64(vec![state.position; rows.len()]) };
            inputs.insert(states::PAST_LENGTH.to_owned(), past);
        }
        Ok(inputs)
    }

    /// Compares one row of a call with what the reference recorded of it and the state that it left.
    fn compare(
        &self,
        row: &Row<'_>,
        recorded: &Recorded,
        state: &State<f64>,
        visit: &mut dyn FnMut(&Comparison<'_>) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, Error> {
        // All of them are looked up before any is reported: an error further up must not hide a missing probe.
        let pairs = self.probes.iter().map(|probe| {
            let wrong = |problem| self.wrong(&probe.name, problem);
            let got = row.values(probe).map_err(wrong)?;
            let expected = recorded.values(probe, state, got.len()).map_err(wrong)?;
            Ok((probe, got, expected))
        });
        for (probe, got, expected) in pairs.collect::<Result<Vec<_>, Error>>()? {
            let mut tally = Tally::new(tolerance(probe, self.arithmetic));
            tally.add(got, &expected);
            let point = tally.point(probe.layer.unwrap_or_default());
            let comparison = Comparison { probe, padded: row.length < row.width, point };
            if visit(&comparison).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn wrong(&self, name: &str, problem: String) -> Error {
        Error::Probe { graph: self.kind, name: name.to_owned(), problem }
    }
}

fn tolerance(probe: &proto::Probe, precision: Precision) -> Tolerance {
    let class = match probe.layout {
        ProbeLayout::State { .. } => ToleranceClass::States,
        _ if probe.name == states::LOGITS => ToleranceClass::Logits,
        _ => ToleranceClass::Activations,
    };
    Tolerance::of(class, precision)
}

/// What the reference reports during a call, by name.
#[derive(Default)]
struct Recorded(BTreeMap<String, Array2<f64>>);

impl Observer<f64> for Recorded {
    fn see(&mut self, name: &str, _: usize, value: ArrayView2<'_, f64>) {
        match self.0.get_mut(name) {
            // The rows of the next chunk, which have the same width.
            Some(known) => drop(known.append(Axis(0), value)),
            None => drop(self.0.insert(name.to_owned(), value.to_owned())),
        }
    }
}

impl Recorded {
    /// The values expected at a probe, of which the graph returns `count`.
    fn values(&self, probe: &proto::Probe, state: &State<f64>, count: usize) -> Result<Vec<f64>, String> {
        let missing = || "the reference reports no such value".to_owned();
        if let ProbeLayout::State { .. } = probe.layout {
            return state.tensors.get(&probe.name).map(|tensor| tensor.iter().copied().collect()).ok_or_else(missing);
        }
        let value = self.0.get(&probe.name).ok_or_else(missing)?;
        let all: Vec<f64> = value.iter().copied().collect();
        match probe.layout {
            // The graph returns the last position alone.
            ProbeLayout::Positions { width } if count == width => Ok(all[all.len().saturating_sub(width)..].to_vec()),
            _ => Ok(all),
        }
    }
}

/// One row of a batch that a graph was run on.
struct Row<'g> {
    outputs: &'g BTreeMap<String, HostTensor>,
    rows: usize,
    row: usize,
    /// The number of tokens in every row of the batch, padding included.
    width: usize,
    /// The number of tokens in this row.
    length: usize,
}

impl Row<'_> {
    /// The probed values of this row, without those of its padding.
    fn values(&self, probe: &proto::Probe) -> Result<&[f32], String> {
        let missing = || format!("expected the value `{}`, which is not in the graph", probe.value);
        let tensor = self.outputs.get(&probe.value).ok_or_else(missing)?;
        let Values::Float32(values) = &tensor.values else {
            return Err(format!("`{}`: expected fp32, got another element type", probe.value));
        };
        let misshapen =
            |expected: String| format!("`{}`: expected shape {expected}, got {:?}", probe.value, tensor.shape);
        let (rows, width) = (self.rows, self.width);
        let expected = match &probe.layout {
            ProbeLayout::Tokens { width: size } => vec![rows, width, *size],
            ProbeLayout::State { shape } => std::iter::once(rows).chain(shape.iter().copied()).collect(),
            ProbeLayout::Positions { width: size } => {
                let positions = [rows, rows * width].into_iter().find(|count| count * size == values.len());
                return match positions {
                    Some(count) if count == rows && width > 1 => Ok(&values[self.row * size..][..*size]),
                    Some(_) => Ok(&values[self.row * width * size..][..self.length * size]),
                    None => Err(misshapen(format!("[{rows}, 1 or {width}, {size}]"))),
                };
            }
            other => return Err(format!("expected a known layout, got {other:?}")),
        };
        if tensor.shape != expected {
            return Err(misshapen(format!("{expected:?}")));
        }
        let own = &values[self.row * values.len() / rows..][..values.len() / rows];
        Ok(match probe.layout {
            ProbeLayout::Tokens { width: size } => &own[..self.length * size],
            _ => own,
        })
    }
}
