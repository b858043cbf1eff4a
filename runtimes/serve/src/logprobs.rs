//! Log-probabilities: `log softmax(scores)`, in f64.

/// A token's log-probability, and those of the most likely tokens at its position.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct TokenLogprobs {
    /// The token.
    pub token: u32,
    /// Its log-probability in nats.
    pub logprob: f64,
    /// The most likely tokens with their log-probabilities, the most likely one first; of equal ones the lowest id.
    pub top: Vec<(u32, f64)>,
}

impl TokenLogprobs {
    /// The log-probability of a token under scores `[vocabulary]`, before temperature and other sampling parameters.
    ///
    /// A token outside the vocabulary has the log-probability minus infinity.
    pub fn new(scores: &[f32], token: u32, alternatives: usize) -> Self {
        let normalizer = normalizer(scores);
        let logprob = |token: u32| {
            let score = scores.get(token as usize).copied().unwrap_or(f32::NEG_INFINITY);
            f64::from(score) - normalizer
        };
        let top = most_likely(scores, alternatives).into_iter().map(|token| (token, logprob(token))).collect();
        Self { token, logprob: logprob(token), top }
    }
}

/// `log Σ exp(scores)`.
fn normalizer(scores: &[f32]) -> f64 {
    let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = scores.iter().map(|&score| (f64::from(score) - f64::from(largest)).exp()).sum();
    sum.ln() + f64::from(largest)
}

fn most_likely(scores: &[f32], count: usize) -> Vec<u32> {
    let order = |a: &u32, b: &u32| scores[*b as usize].total_cmp(&scores[*a as usize]).then(a.cmp(b));
    let mut tokens: Vec<u32> = (0..scores.len() as u32).collect();
    let count = count.min(tokens.len());
    if count == 0 {
        return Vec::new();
    }
    if count < tokens.len() {
        tokens.select_nth_unstable_by(count - 1, order);
        tokens.truncate(count);
    }
    tokens.sort_unstable_by(order);
    tokens
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_probabilities_are_those_of_the_softmax_and_the_best_come_first() {
        let scores = [1.0_f32, 3.0, 2.0, 3.0];
        let total: f64 = scores.iter().map(|&score| f64::from(score).exp()).sum();
        let got = TokenLogprobs::new(&scores, 2, 3);
        assert!((got.logprob - (2.0_f64.exp() / total).ln()).abs() < 1e-12);
        assert_eq!(got.top.iter().map(|&(token, _)| token).collect::<Vec<_>>(), [1, 3, 2]);
        assert_eq!(got.top[2].1.to_bits(), got.logprob.to_bits());
    }

    #[test]
    fn large_scores_do_not_overflow_and_more_alternatives_than_tokens_are_all_of_them() {
        let got = TokenLogprobs::new(&[1e4, 0.0], 1, 9);
        assert_eq!((got.logprob, got.top.len()), (-1e4, 2));
        assert_eq!(
            TokenLogprobs::new(&[0.0], 5, 0),
            TokenLogprobs { token: 5, logprob: f64::NEG_INFINITY, top: vec![] }
        );
    }
}
