//! The windows in which a text is fed, and which tokens are scored in each.

use super::EvalOptions;

/// A window of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    /// The first token of the window.
    pub(super) begin: usize,
    /// The token after the last of the window.
    pub(super) end: usize,
    /// The first token that is scored in this window; those before it are its context.
    pub(super) first: usize,
}

impl Window {
    pub(super) fn len(&self) -> usize {
        self.end - self.begin
    }
}

/// The windows over a number of tokens: one begins every `stride` tokens, and each scores what none before it did.
pub(super) fn windows(tokens: usize, options: &EvalOptions) -> Vec<Window> {
    let mut all = Vec::new();
    let (mut begin, mut scored) = (0, 0);
    while scored < tokens {
        let end = tokens.min(begin + options.window);
        // The first token of a window has no context and is not scored.
        all.push(Window { begin, end, first: scored.max(begin + 1) });
        scored = end;
        begin += options.stride;
    }
    all.retain(|window| window.first < window.end);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scored(tokens: usize, window: usize, stride: usize) -> Vec<usize> {
        let options = EvalOptions { stride, ..EvalOptions::new(window) };
        windows(tokens, &options).iter().flat_map(|window| window.first..window.end).collect()
    }

    #[test]
    fn disjoint_windows_score_every_token_but_their_first() {
        assert_eq!(scored(10, 4, 4), [1, 2, 3, 5, 6, 7, 9]);
        assert_eq!(scored(9, 4, 4), [1, 2, 3, 5, 6, 7]);
    }

    #[test]
    fn overlapping_windows_score_every_token_but_the_first_exactly_once() {
        for window in 2..9 {
            for stride in 1..window {
                for tokens in [2, 3, window, window + 1, 40] {
                    let expected: Vec<usize> = (1..tokens).collect();
                    assert_eq!(scored(tokens, window, stride), expected, "{tokens} by {window} every {stride}");
                }
            }
        }
    }

    #[test]
    fn a_scored_token_has_at_least_the_overlap_as_context_after_the_first_window() {
        for stride in 1..8 {
            let options = EvalOptions { stride, ..EvalOptions::new(8) };
            for window in windows(50, &options).iter().skip(1) {
                assert!(window.first - window.begin >= (8 - stride).max(1) && window.len() <= 8, "{window:?}");
            }
        }
    }
}
