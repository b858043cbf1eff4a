//! Stop strings: texts that end a sequence.
//!
//! Text that may be the beginning of a stop string is held back, so that a stop string is never shown, not even in
//! part, however many tokens it spans.

use crate::Error;

#[derive(Clone, Debug)]
pub(crate) struct StopStrings {
    strings: Vec<String>,
    longest: usize,
}

impl StopStrings {
    pub(crate) fn new(strings: Vec<String>) -> Result<Self, Error> {
        if strings.iter().any(String::is_empty) {
            return Err(Error::Option { name: "stop", problem: "expected a text, got an empty one".to_owned() });
        }
        let longest = strings.iter().map(String::len).max().unwrap_or(0);
        Ok(Self { strings, longest })
    }

    /// Where the first stop string of a text begins that ends after `from`, given that none ends before.
    pub(crate) fn find(&self, text: &str, from: usize) -> Option<usize> {
        let start = text.floor_char_boundary(from.saturating_sub(self.longest));
        self.strings.iter().filter_map(|stop| text[start..].find(stop.as_str())).min().map(|at| start + at)
    }

    /// Bytes at the end of a text that may be the beginning of a stop string.
    pub(crate) fn held_back(&self, text: &str) -> usize {
        let start = text.ceil_char_boundary((text.len() + 1).saturating_sub(self.longest));
        let tail = &text[start..];
        let held = |&(at, _): &(usize, char)| self.strings.iter().any(|stop| stop.starts_with(&tail[at..]));
        tail.char_indices().find(held).map_or(0, |(at, _)| tail.len() - at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stops(strings: &[&str]) -> StopStrings {
        StopStrings::new(strings.iter().map(|&s| s.to_owned()).collect()).unwrap()
    }

    #[test]
    fn the_earliest_stop_string_wins() {
        assert_eq!(stops(&["END", "€€"]).find("ab€€ END", 0), Some(2));
        assert_eq!(stops(&["END", "€€"]).find("ab€ EN", 0), None);
        assert_eq!(stops(&[]).find("anything", 3), None);
    }

    #[test]
    fn a_search_looks_back_as_far_as_a_stop_string_reaches() {
        assert_eq!(stops(&["abc"]).find("xxabc", 4), Some(2));
        assert_eq!(stops(&["é€"]).find("xé€", 3), Some(1));
    }

    #[test]
    fn only_what_may_begin_a_stop_string_is_held_back() {
        assert_eq!(stops(&[]).held_back("abc"), 0);
        let stops = stops(&["\n\nKING", "é€x"]);
        for (text, held) in
            [("a\n", 1), ("a\n\n", 2), ("\n\n\n", 2), ("a\n\nKIN", 5), ("a\nK", 0), ("é", 2), ("aé€", 5), ("", 0)]
        {
            assert_eq!(stops.held_back(text), held, "{text:?}");
        }
    }

    #[test]
    fn an_empty_stop_string_is_an_error() {
        assert!(StopStrings::new(vec!["a".into(), String::new()]).is_err());
    }
}
