//! Greedy texts, compared token by token.

use super::{ABSOLUTE, Error, RELATIVE, forms::Expected, measure::argmax};
use crate::Model;
use serde::Serialize;

/// A runtime's greedy text beside the reference's.
#[derive(Clone, Debug, Serialize)]
pub struct Greedy {
    /// The runtime.
    pub runtime: String,
    /// Tokens compared.
    pub tokens: usize,
    /// Where the choice differed because two tokens are as good as equal: the text then went on with the reference's.
    pub near_ties: Vec<Divergence>,
    /// Where the texts part for another reason.
    pub parted: Option<Divergence>,
    /// Whether they did not part.
    pub passed: bool,
}

/// A place where two texts choose different tokens.
#[derive(Clone, Debug, Serialize)]
pub struct Divergence {
    /// Tokens behind the prompt.
    pub position: usize,
    /// The reference's token.
    pub expected: i64,
    /// The runtime's token.
    pub got: i64,
    /// By how much the reference prefers its own, in logits.
    pub margin: f64,
}

/// Steps along the reference's text.
pub(super) fn compare(model: &mut dyn Model, runtime: &str, expected: &Expected) -> Result<Greedy, Error> {
    let mut states = model.initial_states(1)?;
    let mut row = Vec::new();
    for &token in &expected.tokens {
        row = wide(model.step(&[token], &mut states)?.at(0, 0));
    }
    let mut greedy =
        Greedy { runtime: runtime.to_owned(), tokens: 0, near_ties: Vec::new(), parted: None, passed: true };
    for (position, (token, logits)) in expected.greedy.iter().enumerate() {
        greedy.tokens += 1;
        let got = argmax(&row);
        if got as i64 != *token {
            let margin = logits[*token as usize] - logits[got];
            let parting = Divergence { position, expected: *token, got: got as i64, margin };
            let largest = logits.iter().fold(0.0_f64, |largest, x| largest.max(x.abs()));
            // Both may be off by what is let pass.
            if margin > 2.0 * (ABSOLUTE + RELATIVE * largest) {
                greedy.parted = Some(parting);
                greedy.passed = false;
                break;
            }
            greedy.near_ties.push(parting);
        }
        row = wide(model.step(&[*token], &mut states)?.at(0, 0));
    }
    Ok(greedy)
}

fn wide(row: &[f32]) -> Vec<f64> {
    row.iter().map(|&x| f64::from(x)).collect()
}
