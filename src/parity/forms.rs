//! The forms in which a prompt can be fed, each compared with the reference.

use super::{
    Error, Measure,
    measure::{Tally, argmax},
};
use crate::{Bundle, Model, States, TokenBatch, Values, proto::GraphKind};
use densessm_reference::{Reference, State};
use ndarray::Array2;

/// What the reference makes of a prompt.
pub(super) struct Expected {
    pub(super) tokens: Vec<i64>,
    /// `[tokens, V]`
    pub(super) logits: Array2<f64>,
    /// After each prefix whose length is asked for.
    states: Vec<(usize, State<f64>)>,
    /// Greedy tokens behind the prompt, with the logits each was chosen from.
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
            let token = argmax(&row) as i64;
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

/// Lengths of a ragged batch's rows: some, in rising order, the last being the whole prompt.
fn lengths(tokens: usize) -> [usize; 3] {
    [1, tokens / 2, tokens]
}

/// A form.
#[derive(Clone, Copy, Debug)]
pub(super) enum Form {
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

/// The forms that a bundle's graphs allow.
pub(super) fn of(bundle: &Bundle) -> impl Iterator<Item = Form> + use<> {
    let [parallel, recurrent] = [GraphKind::Parallel, GraphKind::Recurrent].map(|kind| bundle.graph_path(kind).is_ok());
    [
        (Form::Parallel, parallel),
        (Form::Recurrent, recurrent),
        (Form::Split, parallel && recurrent),
        (Form::Pieces, parallel),
        (Form::Ragged, parallel),
    ]
    .into_iter()
    .filter_map(|(form, possible)| possible.then_some(form))
}

impl Form {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Parallel => "parallel",
            Self::Recurrent => "recurrent",
            Self::Split => "parallel, then recurrent",
            Self::Pieces => "parallel, in pieces",
            Self::Ragged => "parallel, padded rows",
        }
    }

    /// The logits of a form and the states after it.
    pub(super) fn measure(
        self,
        model: &mut dyn Model,
        runtime: &str,
        expected: &Expected,
    ) -> Result<Vec<Measure>, Error> {
        let tokens = &expected.tokens;
        let (mut logits, mut carried) = (Tally::default(), Tally::default());
        let mut states = model.initial_states(1)?;
        match self {
            Self::Parallel => prefill(model, tokens, 0, &mut states, expected, &mut logits)?,
            Self::Recurrent => steps(model, tokens, 0, &mut states, expected, &mut logits)?,
            Self::Split => {
                for cut in [1, tokens.len() / 2, tokens.len() - 1] {
                    states = model.initial_states(1)?;
                    prefill(model, &tokens[..cut], 0, &mut states, expected, &mut logits)?;
                    steps(model, &tokens[cut..], cut, &mut states, expected, &mut logits)?;
                }
            }
            Self::Pieces => {
                let mut at = 0;
                for size in [1, 2, 3, 5, 8, 13].into_iter().cycle() {
                    let end = tokens.len().min(at + size);
                    prefill(model, &tokens[at..end], at, &mut states, expected, &mut logits)?;
                    at = end;
                    if at == tokens.len() {
                        break;
                    }
                }
            }
            Self::Ragged => {
                let lengths = lengths(tokens.len());
                let width = tokens.len();
                // What fills a row up must not matter: it is no zero.
                let filler = tokens[width - 1];
                let row =
                    |length: usize| tokens[..length].iter().copied().chain(std::iter::repeat_n(filler, width - length));
                let ids: Vec<i64> = lengths.iter().flat_map(|&length| row(length)).collect();
                states = model.initial_states(lengths.len())?;
                let got = model.prefill(&TokenBatch::new(&ids, &lengths)?, &mut states)?;
                for (row, &length) in lengths.iter().enumerate() {
                    logits.add_logits(got.last(row, length), expected.row(length - 1));
                }
                let snapshot = states.snapshot()?;
                for (row, &length) in lengths.iter().enumerate() {
                    add_states(&snapshot.select(&[row])?, expected.state(length), &mut carried);
                }
            }
        }
        if !matches!(self, Self::Ragged) {
            add_states(&states.snapshot()?, expected.state(tokens.len()), &mut carried);
        }
        let name = self.name();
        Ok(vec![
            logits.measure(runtime, format!("{name}: logits")),
            carried.measure(runtime, format!("{name}: states")),
        ])
    }
}

fn add_states(snapshot: &crate::Snapshot, expected: Option<&State<f64>>, tally: &mut Tally) {
    let Some(expected) = expected else { return };
    for (name, tensor) in snapshot.tensors() {
        if let (Values::Float32(got), Some(expected)) = (&tensor.values, expected.tensors.get(name)) {
            tally.add_tensor(got, &expected.iter().copied().collect::<Vec<f64>>());
        }
    }
}

fn prefill(
    model: &mut dyn Model,
    tokens: &[i64],
    first: usize,
    states: &mut States,
    expected: &Expected,
    tally: &mut Tally,
) -> Result<(), Error> {
    let logits = model.prefill(&TokenBatch::new(tokens, &[tokens.len()])?, states)?;
    for position in 0..logits.positions {
        // One position is the last one's.
        let token = first + tokens.len() - logits.positions + position;
        tally.add_logits(logits.at(0, position), expected.row(token));
    }
    Ok(())
}

fn steps(
    model: &mut dyn Model,
    tokens: &[i64],
    first: usize,
    states: &mut States,
    expected: &Expected,
    tally: &mut Tally,
) -> Result<(), Error> {
    for (i, &token) in tokens.iter().enumerate() {
        let logits = model.step(&[token], states)?;
        tally.add_logits(logits.at(0, 0), expected.row(first + i));
    }
    Ok(())
}

/// Errors of logits over a long run of given tokens, as parts of what is let pass, at growing distances.
pub(super) fn drift(model: &mut dyn Model, reference: &Reference, steps: usize) -> Result<Vec<(usize, f64)>, Error> {
    let mut states = model.initial_states(1)?;
    let mut state = reference.initial_state::<f64>();
    let mut points = Vec::new();
    let mut tally = Tally::default();
    let (mut token, mut next) = (0_u64, 10.0_f64);
    for step in 1..=steps {
        token = token.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let id = ((token >> 33) % reference.vocabulary() as u64) as i64;
        let expected = reference.recurrent(id, &mut state, &mut ());
        let logits = model.step(&[id], &mut states)?;
        tally.add_logits(logits.at(0, 0), &expected.to_vec());
        if step as f64 >= next || step == steps {
            points.push((step, tally.max() / tally.allowed()));
            tally = Tally::default();
            next *= 10_f64.powf(0.25);
        }
    }
    Ok(points)
}
