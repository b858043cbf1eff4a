//! The choice of the next token from its scores.
//!
//! A draw is a function of the seed, the token's position and the scores, with no state between draws. The uniform number for the token at position `p` is the first 64 bits of the ChaCha8 key stream
//! number `p`, whose key is the seed (little-endian) and zeros; its upper 53 bits are the fraction in [0, 1).

use crate::Error;
use densessm_session::argmax;
use rand::{Rng, SeedableRng, rngs::ChaCha8Rng};
use std::cmp::Ordering;

/// How the next token is chosen. The parameters are applied in the order temperature, top-k, top-p, as in Transformers.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Sampling {
    /// The scores are divided by it. 0 is greedy: the highest score wins, of equal ones the lowest id, and no other
    /// parameter matters.
    pub temperature: f64,
    /// Draws among this many tokens with the highest scores, of equal ones those with the lowest ids; 0 is all.
    pub top_k: usize,
    /// Draws among the smallest set of most likely tokens whose probabilities add up to at least this; 1 is all.
    pub top_p: f64,
    /// Two runs with the same seed and scores draw the same tokens.
    pub seed: u64,
}

impl Sampling {
    /// The highest score wins.
    pub const GREEDY: Self = Self { temperature: 0.0, top_k: 0, top_p: 1.0, seed: 0 };

    /// Draws among all tokens at this temperature, with seed 0.
    pub fn new(temperature: f64) -> Self {
        Self { temperature, ..Self::GREEDY }
    }

    /// Sets the number of tokens to draw among; 0 is all.
    #[must_use]
    pub fn with_top_k(self, top_k: usize) -> Self {
        Self { top_k, ..self }
    }

    /// Sets the probability of the tokens to draw among; 1 is all.
    #[must_use]
    pub fn with_top_p(self, top_p: f64) -> Self {
        Self { top_p, ..self }
    }

    /// Sets the seed.
    #[must_use]
    pub fn with_seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    /// Checks the ranges.
    ///
    /// # Errors
    /// When the temperature is negative or not finite, or top-p is not in (0, 1].
    pub fn check(&self) -> Result<(), Error> {
        let out_of_range =
            |name, expected, got: f64| Err(Error::Option { name, problem: format!("expected {expected}, got {got}") });
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return out_of_range("temperature", "a number of at least 0", self.temperature);
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return out_of_range("top-p", "a number above 0 and at most 1", self.top_p);
        }
        Ok(())
    }
}

impl Default for Sampling {
    fn default() -> Self {
        Self::GREEDY
    }
}

/// Draws tokens. It keeps its working memory from one draw to the next.
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
    candidates: Vec<Candidate>,
}

#[derive(Clone, Copy, Debug)]
struct Candidate {
    score: f32,
    token: u32,
}

impl Candidate {
    /// The highest score first, of equal ones the lowest id: a total order, so that a selection does not depend on how
    /// it is made.
    fn order(&self, other: &Self) -> Ordering {
        other.score.total_cmp(&self.score).then(self.token.cmp(&other.token))
    }
}

impl Sampler {
    /// Checks the parameters and returns a sampler.
    ///
    /// # Errors
    /// See [`Sampling::check`].
    pub fn new(sampling: Sampling) -> Result<Self, Error> {
        sampling.check()?;
        Ok(Self { sampling, candidates: Vec::new() })
    }

    /// Draws the next tokens with another seed.
    pub fn reseed(&mut self, seed: u64) {
        self.sampling.seed = seed;
    }

    /// Chooses the token at `position` (0 is a sequence's first) by its scores `[vocabulary]`.
    ///
    /// # Errors
    /// When a score is NaN or plus infinity, or none is finite. Minus infinity is a token that cannot be drawn.
    pub fn sample(&mut self, scores: &[f32], position: u64) -> Result<u32, Error> {
        let best = best(scores)?;
        let Sampling { temperature, top_k, top_p, seed } = self.sampling;
        if temperature == 0.0 {
            return Ok(best.token);
        }
        // Adding 0.0 changes -0.0 to 0.0: the two are equal scores, but not equal in a total order.
        let candidate = |(token, &score): (usize, &f32)| Candidate { score: score + 0.0, token: token as u32 };
        self.candidates.clear();
        self.candidates.extend(scores.iter().enumerate().map(candidate).filter(|c| c.score > f32::NEG_INFINITY));
        let weight = |c: &Candidate| ((f64::from(c.score) - f64::from(best.score)) / temperature).exp();
        if top_k > 0 && top_k < self.candidates.len() {
            self.candidates.select_nth_unstable_by(top_k - 1, Candidate::order);
            self.candidates.truncate(top_k);
            self.candidates.sort_unstable_by(Candidate::order);
        }
        if top_p < 1.0 {
            keep_nucleus(&mut self.candidates, top_p, weight);
        }
        let total: f64 = self.candidates.iter().map(weight).sum();
        let mut rest = uniform(seed, position) * total;
        for candidate in &self.candidates {
            rest -= weight(candidate);
            if rest < 0.0 {
                return Ok(candidate.token);
            }
        }
        // Reached by rounding only.
        Ok(self.candidates.last().map_or(best.token, |candidate| candidate.token))
    }
}

fn best(scores: &[f32]) -> Result<Candidate, Error> {
    if let Some(token) = scores.iter().position(|score| score.is_nan() || *score == f32::INFINITY) {
        return Err(Error::Logits(format!("token {token}: expected a finite score, got {}", scores[token])));
    }
    match argmax(scores) {
        Some(token) if scores[token] > f32::NEG_INFINITY => Ok(Candidate { score: scores[token], token: token as u32 }),
        _ => Err(Error::Logits(format!("expected a finite score, got none among {}", scores.len()))),
    }
}

/// Keeps the smallest set of most likely candidates with a share of at least `top_p`, best first. Selects and sorts
/// only twice as many as it needs, not the whole vocabulary.
fn keep_nucleus(candidates: &mut Vec<Candidate>, top_p: f64, weight: impl Fn(&Candidate) -> f64) {
    const FIRST_SELECTION: usize = 64;
    let enough = top_p * candidates.iter().map(&weight).sum::<f64>();
    let (mut sorted, mut kept, mut sum) = (0, 0, 0.0);
    while kept < candidates.len() && sum < enough {
        if kept == sorted {
            let count = sorted.max(FIRST_SELECTION).min(candidates.len() - sorted);
            let rest = &mut candidates[sorted..];
            rest.select_nth_unstable_by(count - 1, Candidate::order);
            rest[..count].sort_unstable_by(Candidate::order);
            sorted += count;
        }
        sum += weight(&candidates[kept]);
        kept += 1;
    }
    candidates.truncate(kept);
}

fn uniform(seed: u64, position: u64) -> f64 {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    let mut generator = ChaCha8Rng::from_seed(key);
    generator.set_stream(position);
    (generator.next_u64() >> 11) as f64 * (-53f64).exp2()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(temperature: f64, top_k: usize, top_p: f64) -> Sampler {
        Sampler::new(Sampling { temperature, top_k, top_p, seed: 7 }).unwrap()
    }

    /// Scores in no order, with ties and one token that cannot be drawn.
    fn scores() -> Vec<f32> {
        let mut scores: Vec<f32> = (0..300_u32).map(|i| ((i * 7919) % 97) as f32 / 20.0).collect();
        scores[5] = f32::NEG_INFINITY;
        scores
    }

    /// The distribution by its definition: everything sorted, cut, normalised.
    fn exact(scores: &[f32], temperature: f64, top_k: usize, top_p: f64) -> Vec<f64> {
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|&a, &b| scores[b].partial_cmp(&scores[a]).unwrap().then(a.cmp(&b)));
        order.truncate(if top_k == 0 { scores.len() } else { top_k });
        let weights: Vec<f64> = order.iter().map(|&i| (f64::from(scores[i]) / temperature).exp()).collect();
        let total: f64 = weights.iter().sum();
        let mut distribution = vec![0.0; scores.len()];
        let mut sum = 0.0;
        for (&token, weight) in order.iter().zip(&weights) {
            if sum >= top_p * total {
                break;
            }
            distribution[token] = *weight;
            sum += weight;
        }
        distribution.iter().map(|weight| weight / sum).collect()
    }

    /// Pearson's test of 60,000 draws against a distribution: how far the statistic is from its mean, in deviations.
    fn misfit(sampler: &mut Sampler, scores: &[f32], expected: &[f64]) -> f64 {
        const DRAWS: u64 = 60_000;
        let mut counts = vec![0_u64; scores.len()];
        for position in 0..DRAWS {
            counts[sampler.sample(scores, position).unwrap() as usize] += 1;
        }
        let (mut statistic, mut cells) = (0.0, 0);
        for (&count, share) in counts.iter().zip(expected) {
            assert!(*share > 0.0 || count == 0, "a token outside the selection was drawn");
            if *share > 0.0 {
                let expected = share * DRAWS as f64;
                statistic += (count as f64 - expected).powi(2) / expected;
                cells += 1;
            }
        }
        let freedom = f64::from(cells - 1);
        (statistic - freedom) / (2.0 * freedom).sqrt()
    }

    #[test]
    fn draws_follow_the_exact_distribution() {
        let scores = scores();
        for (temperature, top_k, top_p) in
            [(1.0, 0, 1.0), (0.5, 0, 1.0), (2.0, 10, 1.0), (1.0, 0, 0.3), (3.0, 0, 0.9), (1.5, 50, 0.6)]
        {
            let expected = exact(&scores, temperature, top_k, top_p);
            let misfit = misfit(&mut sampler(temperature, top_k, top_p), &scores, &expected);
            assert!(misfit < 4.0, "T {temperature}, k {top_k}, p {top_p}: {misfit} deviations");
        }
    }

    #[test]
    fn draws_do_not_fit_the_distribution_of_a_temperature_a_tenth_higher() {
        let scores = scores();
        let expected = exact(&scores, 1.1, 0, 1.0);
        assert!(misfit(&mut sampler(1.0, 0, 1.0), &scores, &expected) > 8.0);
    }

    #[test]
    fn greedy_takes_the_first_of_the_highest_scores() {
        assert_eq!(sampler(0.0, 3, 0.5).sample(&[1.0, 4.0, -2.0, 4.0], 0).unwrap(), 1);
    }

    #[test]
    fn one_candidate_or_hardly_any_temperature_is_greedy() {
        let scores = scores();
        let greedy = sampler(0.0, 0, 1.0).sample(&scores, 0).unwrap();
        for position in 0..200 {
            assert_eq!(sampler(5.0, 1, 1.0).sample(&scores, position).unwrap(), greedy);
            assert_eq!(sampler(1.0, 1, 1e-9).sample(&scores, position).unwrap(), greedy);
            let unlike = [0.0, 3.0, 2.9];
            assert_eq!(sampler(1e-300, 0, 1.0).sample(&unlike, position).unwrap(), 1);
        }
    }

    #[test]
    fn a_draw_depends_on_seed_position_and_scores_and_on_nothing_drawn_before() {
        let scores = scores();
        let mut used = sampler(1.0, 0, 0.9);
        let drawn: Vec<u32> = (0..50).map(|position| used.sample(&scores, position).unwrap()).collect();
        let fresh: Vec<u32> = (0..50).map(|position| sampler(1.0, 0, 0.9).sample(&scores, position).unwrap()).collect();
        assert_eq!(drawn, fresh);
        let mut other = Sampler::new(Sampling { temperature: 1.0, top_k: 0, top_p: 0.9, seed: 8 }).unwrap();
        let others: Vec<u32> = (0..50).map(|position| other.sample(&scores, position).unwrap()).collect();
        assert_ne!(drawn, others);
    }

    #[test]
    fn the_uniform_numbers_are_those_of_chacha8() {
        // The key stream of ChaCha8 with a key and a stream number of zeros begins with these bytes.
        let first = u64::from_le_bytes([0x3e, 0x00, 0xef, 0x2f, 0x89, 0x5f, 0x40, 0xd6]);
        assert_eq!(uniform(0, 0), (first >> 11) as f64 / (1_u64 << 53) as f64);
    }

    #[test]
    fn scores_that_are_no_numbers_are_an_error() {
        for temperature in [0.0, 1.0] {
            let mut sampler = sampler(temperature, 0, 1.0);
            for bad in [f32::NAN, f32::INFINITY] {
                let error = sampler.sample(&[0.0, bad, 1.0], 0).unwrap_err().to_string();
                assert!(error.starts_with("logits: token 1: expected a finite score"), "{error}");
            }
            assert!(sampler.sample(&[], 0).is_err());
            assert!(sampler.sample(&[f32::NEG_INFINITY; 3], 0).is_err());
        }
    }

    #[test]
    fn parameters_out_of_range_are_named() {
        for (temperature, top_p, name) in
            [(-0.1, 1.0, "temperature"), (f64::NAN, 1.0, "temperature"), (f64::INFINITY, 1.0, "temperature")]
                .into_iter()
                .chain([(1.0, 0.0, "top-p"), (1.0, 1.1, "top-p"), (0.0, -1.0, "top-p"), (1.0, f64::NAN, "top-p")])
        {
            let error = Sampler::new(Sampling { temperature, top_k: 0, top_p, seed: 0 }).unwrap_err().to_string();
            assert!(error.starts_with(name), "{error}");
        }
    }
}
