//! Greedy decoding, compared with the reference token by token.

use super::{Error, measure::largest, modes::Expected};
use crate::{
    Model, argmax,
    proto::{Precision, Tolerance, ToleranceClass},
};
use serde::Serialize;

/// A runtime's greedy tokens beside the reference's.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Greedy {
    /// The runtime.
    pub runtime: String,
    /// The number of tokens compared.
    pub tokens: usize,
    /// The positions at which the tokens differ because the reference's logits of both are equal within tolerance. The
    /// comparison then continues with the reference's token.
    pub near_ties: Vec<Divergence>,
    /// The position at which the tokens differ for any other reason; the comparison ends there.
    pub diverged: Option<Divergence>,
    /// Whether all tokens agree, near-ties excepted.
    pub passed: bool,
}

/// A position at which a runtime and the reference choose different tokens.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Divergence {
    /// The number of tokens generated before it.
    pub position: usize,
    /// The reference's token.
    pub expected: i64,
    /// The runtime's token; 0 where none of its logits is a number.
    pub got: i64,
    /// The difference of the two tokens' logits in the reference; infinite where none of the runtime's is a number.
    pub margin: f64,
}

/// Steps through the prompt and the reference's greedy tokens, and compares the runtime's choices with them.
pub(super) fn compare(
    model: &mut dyn Model,
    runtime: &str,
    expected: &Expected,
    precision: Precision,
) -> Result<Greedy, Error> {
    let tolerance = Tolerance::of(ToleranceClass::Logits, precision);
    let mut states = model.initial_states(1)?;
    let mut row = Vec::new();
    for &token in &expected.tokens {
        row = wide(model.step(&[token], &mut states)?.at(0, 0));
    }
    let mut greedy =
        Greedy { runtime: runtime.to_owned(), tokens: 0, near_ties: Vec::new(), diverged: None, passed: true };
    for (position, (token, logits)) in expected.greedy.iter().enumerate() {
        greedy.tokens += 1;
        let got = argmax(&row);
        if got.map(|got| got as i64) != Some(*token) {
            let margin = got.map_or(f64::INFINITY, |got| logits[*token as usize] - logits[got]);
            let divergence = Divergence { position, expected: *token, got: got.unwrap_or(0) as i64, margin };
            // Each of the two logits may be off by the tolerance.
            if margin > 2.0 * tolerance.bound(largest(logits)) {
                greedy.diverged = Some(divergence);
                greedy.passed = false;
                break;
            }
            greedy.near_ties.push(divergence);
        }
        row = wide(model.step(&[*token], &mut states)?.at(0, 0));
    }
    Ok(greedy)
}

fn wide(row: &[f32]) -> Vec<f64> {
    row.iter().map(|&x| f64::from(x)).collect()
}
