//! The execution modes, in which a prompt can be fed to a bundle's graphs, each compared with the reference.

use super::{
    Error, ErrorCurve, Measure,
    measure::{ComparedValues, ErrorPoint, Tally, largest, max_error},
};
use crate::{
    Bundle, Model, States, TokenBatch, Values, argmax,
    proto::{GraphKind, Precision, Tolerance, ToleranceClass},
};
use densessm_reference::{Reference, State};
use ndarray::Array2;
use std::collections::BTreeMap;

/// What the reference computes for a prompt.
pub(super) struct Expected {
    pub(super) tokens: Vec<i64>,
    /// `[tokens, V]`
    pub(super) logits: Array2<f64>,
    /// The states after the prefixes of [`lengths`].
    states: Vec<(usize, State<f64>)>,
    /// The greedy tokens after the prompt, each with the logits that it was chosen from.
    pub(super) greedy: Vec<(i64, Vec<f64>)>,
}

impl Expected {
    pub(super) fn new(reference: &Reference, tokens: &[i64], new_tokens: usize) -> Self {
        let mut state = reference.initial_state::<f64>();
        let mut states = Vec::new();
        let mut rows = Vec::new();
        let mut done = 0;
        for length in lengths(tokens.len()) {
            if length > done {
                rows.push(reference.parallel(&tokens[done..length], &mut state, &mut ()));
                done = length;
            }
            states.push((length, state.clone()));
        }
        let views: Vec<_> = rows.iter().map(|rows| rows.view()).collect();
        let logits = ndarray::concatenate(ndarray::Axis(0), &views).unwrap_or_default();
        let mut greedy = Vec::new();
        let mut row: Vec<f64> = logits.row(tokens.len() - 1).to_vec();
        for _ in 0..new_tokens {
            let token = argmax(&row).unwrap_or(0) as i64;
            let next = reference.recurrent(token, &mut state, &mut ()).to_vec();
            greedy.push((token, std::mem::replace(&mut row, next)));
        }
        Self { tokens: tokens.to_vec(), logits, states, greedy }
    }

    fn row(&self, position: usize) -> &[f64] {
        self.logits.row(position).to_slice().unwrap_or_default()
    }

    fn state(&self, length: usize) -> Option<&State<f64>> {
        self.states.iter().find(|(known, _)| *known == length).map(|(_, state)| state)
    }
}

/// The lengths of a ragged batch's rows in rising order; the last one is the whole prompt's.
fn lengths(tokens: usize) -> [usize; 3] {
    [1, tokens / 2, tokens]
}

/// An execution mode.
#[derive(Clone, Copy, Debug)]
pub(super) enum Mode {
    /// The whole prompt in one call.
    Parallel,
    /// Token by token.
    Recurrent,
    /// The beginning in one call, the rest token by token.
    Split,
    /// In calls of several lengths.
    Pieces,
    /// Right-padded rows of several lengths in one call.
    Ragged,
}

/// Returns the execution modes that a bundle's graphs allow.
pub(super) fn of(bundle: &Bundle) -> impl Iterator<Item = Mode> + use<> {
    let [parallel, recurrent] = [GraphKind::Parallel, GraphKind::Recurrent].map(|kind| bundle.graph_path(kind).is_ok());
    [
        (Mode::Parallel, parallel),
        (Mode::Recurrent, recurrent),
        (Mode::Split, parallel && recurrent),
        (Mode::Pieces, parallel),
        (Mode::Ragged, parallel),
    ]
    .into_iter()
    .filter_map(|(mode, possible)| possible.then_some(mode))
}

/// A comparison of one runtime's logits and states in all execution modes.
pub(super) struct Comparison<'e> {
    runtime: &'e str,
    expected: &'e Expected,
    precision: Precision,
    /// The largest error of logits by graph and position, over all modes.
    by_position: BTreeMap<(GraphKind, usize), f64>,
}

impl<'e> Comparison<'e> {
    pub(super) fn new(runtime: &'e str, expected: &'e Expected, precision: Precision) -> Self {
        Self { runtime, expected, precision, by_position: BTreeMap::new() }
    }

    /// Feeds the prompt in a mode, and compares the logits and the states after it.
    pub(super) fn run(&mut self, mode: Mode, model: &mut dyn Model) -> Result<[Measure; 2], Error> {
        let [logits, states] = [ToleranceClass::Logits, ToleranceClass::States]
            .map(|class| Tally::new(Tolerance::of(class, self.precision)));
        let mut run = Run { expected: self.expected, logits, states, by_position: &mut self.by_position };
        run.feed(mode, model)?;
        let name = mode.name();
        Ok([
            run.logits.measure(self.runtime, name, ComparedValues::Logits),
            run.states.measure(self.runtime, name, ComparedValues::States),
        ])
    }

    /// The errors of logits by position, a curve for each graph. The tolerance is the whole prompt's.
    pub(super) fn by_position(self) -> impl Iterator<Item = ErrorCurve> {
        let rule = Tolerance::of(ToleranceClass::Logits, self.precision);
        let tolerance = rule.bound(largest(self.expected.logits.as_slice().unwrap_or_default()));
        let runtime = self.runtime.to_owned();
        [GraphKind::Parallel, GraphKind::Recurrent].into_iter().filter_map(move |graph| {
            let own = self.by_position.iter().filter(|((kind, _), _)| *kind == graph);
            let points: Vec<_> = own.map(|(&(_, at), &max_error)| ErrorPoint { at, max_error, tolerance }).collect();
            (!points.is_empty()).then(|| ErrorCurve { runtime: runtime.clone(), graph, points })
        })
    }
}

/// One mode of a comparison.
struct Run<'e, 'p> {
    expected: &'e Expected,
    logits: Tally,
    states: Tally,
    by_position: &'p mut BTreeMap<(GraphKind, usize), f64>,
}

impl Run<'_, '_> {
    fn feed(&mut self, mode: Mode, model: &mut dyn Model) -> Result<(), Error> {
        let tokens = &self.expected.tokens;
        let mut states = model.initial_states(1)?;
        match mode {
            Mode::Parallel => self.prefill(model, 0..tokens.len(), &mut states)?,
            Mode::Recurrent => self.steps(model, 0, &mut states)?,
            Mode::Split => {
                for cut in [1, tokens.len() / 2, tokens.len() - 1] {
                    states = model.initial_states(1)?;
                    self.prefill(model, 0..cut, &mut states)?;
                    self.steps(model, cut, &mut states)?;
                }
            }
            Mode::Pieces => {
                let mut start = 0;
                for size in [1, 2, 3, 5, 8, 13].into_iter().cycle() {
                    let end = tokens.len().min(start + size);
                    self.prefill(model, start..end, &mut states)?;
                    start = end;
                    if start == tokens.len() {
                        break;
                    }
                }
            }
            Mode::Ragged => return self.ragged(model),
        }
        self.compare_states(&states.snapshot()?, tokens.len());
        Ok(())
    }

    fn ragged(&mut self, model: &mut dyn Model) -> Result<(), Error> {
        let tokens = &self.expected.tokens;
        let (lengths, width) = (lengths(tokens.len()), tokens.len());
        // Padding must have no influence, so it is not zero.
        let padding = tokens[width - 1];
        let row = |length: usize| tokens[..length].iter().copied().chain(std::iter::repeat_n(padding, width - length));
        let ids: Vec<i64> = lengths.iter().flat_map(|&length| row(length)).collect();
        let mut states = model.initial_states(lengths.len())?;
        let got = model.prefill(&TokenBatch::new(&ids, &lengths)?, &mut states)?;
        for (row, &length) in lengths.iter().enumerate() {
            self.compare_logits(GraphKind::Parallel, length - 1, got.last(row, length));
        }
        let snapshot = states.snapshot()?;
        for (row, &length) in lengths.iter().enumerate() {
            self.compare_states(&snapshot.select(&[row])?, length);
        }
        Ok(())
    }

    fn prefill(
        &mut self,
        model: &mut dyn Model,
        range: std::ops::Range<usize>,
        states: &mut States,
    ) -> Result<(), Error> {
        let tokens = &self.expected.tokens[range.clone()];
        let logits = model.prefill(&TokenBatch::new(tokens, &[tokens.len()])?, states)?;
        for position in 0..logits.positions {
            // A single position is that of the last token.
            let token = range.end - logits.positions + position;
            self.compare_logits(GraphKind::Parallel, token, logits.at(0, position));
        }
        Ok(())
    }

    fn steps(&mut self, model: &mut dyn Model, first: usize, states: &mut States) -> Result<(), Error> {
        for position in first..self.expected.tokens.len() {
            let logits = model.step(&self.expected.tokens[position..=position], states)?;
            self.compare_logits(GraphKind::Recurrent, position, logits.at(0, 0));
        }
        Ok(())
    }

    fn compare_logits(&mut self, graph: GraphKind, position: usize, got: &[f32]) {
        let expected = self.expected.row(position);
        self.logits.add_logits(got, expected);
        let max = self.by_position.entry((graph, position)).or_default();
        *max = max.max(max_error(got, expected));
    }

    fn compare_states(&mut self, snapshot: &crate::Snapshot, length: usize) {
        let expected = self.expected.state(length).map(|state| &state.tensors);
        for (name, expected) in expected.into_iter().flatten() {
            let expected: Vec<f64> = expected.iter().copied().collect();
            match snapshot.tensors().get(name).map(|tensor| &tensor.values) {
                Some(Values::Float32(got)) => self.states.add_tensor(got, &expected),
                // A state that is missing is as far off as can be.
                _ => self.states.add_tensor(&[], &expected),
            }
        }
    }
}

impl Mode {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Parallel => "parallel",
            Self::Recurrent => "recurrent",
            Self::Split => "parallel, then recurrent",
            Self::Pieces => "parallel, in pieces",
            Self::Ragged => "parallel, padded rows",
        }
    }
}

/// Steps through pseudo-random tokens beside the reference. Each point is the largest error since the one before, at
/// growing distances.
pub(super) fn drift(
    model: &mut dyn Model,
    reference: &Reference,
    steps: usize,
    precision: Precision,
) -> Result<Vec<ErrorPoint>, Error> {
    let rule = Tolerance::of(ToleranceClass::Logits, precision);
    let mut states = model.initial_states(1)?;
    let mut state = reference.initial_state::<f64>();
    let mut points = Vec::new();
    let mut tally = Tally::new(rule);
    let (mut token, mut next) = (0_u64, 10.0_f64);
    for step in 1..=steps {
        token = token.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let id = ((token >> 33) % reference.vocabulary() as u64) as i64;
        let expected = reference.recurrent(id, &mut state, &mut ());
        let logits = model.step(&[id], &mut states)?;
        tally.add_logits(logits.at(0, 0), &expected.to_vec());
        if step as f64 >= next || step == steps {
            points.push(tally.point(step));
            tally = Tally::new(rule);
            next *= 10_f64.powf(0.25);
        }
    }
    Ok(points)
}
