//! Symbolic sizes: polynomials over named symbols, compared in normal form.

use std::{
    collections::BTreeMap,
    fmt,
    ops::{Add, Mul, Sub},
};

/// The size of an axis: a number, a symbol such as `batch`, or sums and products of them.
///
/// Two sizes are equal when they are the same polynomial: `sequence + 3 - 3` is `sequence`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Dim {
    /// Coefficients by monomial; a monomial is its symbols in order, none for the constant. No coefficient is zero.
    terms: BTreeMap<Vec<&'static str>, i64>,
}

impl Dim {
    /// The number, if no symbol is left in it.
    pub fn known(&self) -> Option<usize> {
        let constant = match self.terms.len() {
            0 => 0,
            1 => *self.terms.get([].as_slice())?,
            _ => return None,
        };
        usize::try_from(constant).ok()
    }

    /// The symbol, if it is one and nothing else.
    pub fn symbol(&self) -> Option<&'static str> {
        match self.terms.iter().next() {
            Some((monomial, 1)) if self.terms.len() == 1 && monomial.len() == 1 => Some(monomial[0]),
            _ => None,
        }
    }

    fn from_terms(terms: impl IntoIterator<Item = (Vec<&'static str>, i64)>) -> Self {
        let mut sum = BTreeMap::new();
        for (monomial, coefficient) in terms {
            *sum.entry(monomial).or_insert(0) += coefficient;
        }
        sum.retain(|_, coefficient| *coefficient != 0);
        Self { terms: sum }
    }
}

impl Dim {
    pub(crate) fn mul_by(self, other: Dim) -> Dim {
        self * other
    }
}

impl From<i64> for Dim {
    fn from(constant: i64) -> Self {
        Self::from_terms([(Vec::new(), constant)])
    }
}

impl From<usize> for Dim {
    fn from(size: usize) -> Self {
        Self::from(size as i64)
    }
}

impl From<&'static str> for Dim {
    fn from(symbol: &'static str) -> Self {
        Self::from_terms([(vec![symbol], 1)])
    }
}

impl<T: Into<Dim>> Add<T> for Dim {
    type Output = Dim;

    fn add(self, other: T) -> Dim {
        Self::from_terms(self.terms.into_iter().chain(other.into().terms))
    }
}

impl<T: Into<Dim>> Sub<T> for Dim {
    type Output = Dim;

    fn sub(self, other: T) -> Dim {
        self + other.into() * -1_i64
    }
}

impl<T: Into<Dim>> Mul<T> for Dim {
    type Output = Dim;

    fn mul(self, other: T) -> Dim {
        let other = other.into();
        Self::from_terms(self.terms.iter().flat_map(|(left, a)| {
            other.terms.iter().map(move |(right, b)| {
                let mut monomial = [left.as_slice(), right.as_slice()].concat();
                monomial.sort_unstable();
                (monomial, a * b)
            })
        }))
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.terms.is_empty() {
            return f.write_str("0");
        }
        // Symbols before the constant, as one writes them.
        let symbols = self.terms.iter().filter(|(monomial, _)| !monomial.is_empty());
        let constant = self.terms.iter().filter(|(monomial, _)| monomial.is_empty());
        for (place, (monomial, &coefficient)) in symbols.chain(constant).enumerate() {
            match (place, coefficient < 0) {
                (0, true) => f.write_str("-")?,
                (0, false) => {}
                (_, true) => f.write_str(" - ")?,
                (_, false) => f.write_str(" + ")?,
            }
            let size = coefficient.unsigned_abs();
            match (monomial.is_empty(), size) {
                (true, _) => write!(f, "{size}")?,
                (false, 1) => f.write_str(&monomial.join("·"))?,
                (false, _) => write!(f, "{size}·{}", monomial.join("·"))?,
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_compared_in_normal_form() {
        let t = Dim::from("sequence");
        assert_eq!(t.clone() + 3_usize - 3_usize, t);
        assert_eq!((t.clone() + 2_usize) * 2_usize, t.clone() + t.clone() + 4_usize);
        assert_ne!(t, Dim::from("batch"));
        assert_eq!(t.symbol(), Some("sequence"));
        assert_eq!((t.clone() + 1_usize).symbol(), None);
        assert_eq!((t.clone() - t).known(), Some(0));
    }

    #[test]
    fn products_commute() {
        let (b, t) = (Dim::from("batch"), Dim::from("sequence"));
        assert_eq!(b.clone() * t.clone(), t.clone() * b.clone());
        assert_eq!((b * (t + 3_usize)).to_string(), "3·batch + batch·sequence");
    }

    #[test]
    fn a_size_reads_as_one_writes_it() {
        let t = Dim::from("sequence");
        assert_eq!((t.clone() + 3_usize).to_string(), "sequence + 3");
        assert_eq!((t * 2_usize - 1_usize).to_string(), "2·sequence - 1");
        assert_eq!(Dim::from(64_usize).to_string(), "64");
    }
}
