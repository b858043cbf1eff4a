//! Symbolic sizes: polynomials over named symbols, compared in normal form.

use std::{
    collections::BTreeMap,
    fmt,
    ops::{Add, Mul, Sub},
};

/// The size of an axis: a number, a symbol such as `batch`, or sums and products of them.
///
/// Two sizes are equal when they are the same polynomial: `sequence + 3 - 3` equals `sequence`. A size whose
/// coefficients leave the range of an `i64` is kept as an overflow, which is an error of the graph where it is used.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Dim {
    /// Coefficients by monomial; a monomial is its symbols in order, none for the constant. No coefficient is zero.
    /// `None` after an overflow.
    terms: Option<Terms>,
}

type Terms = BTreeMap<Vec<&'static str>, i64>;

impl Dim {
    /// Returns the number, if the size contains no symbol and is not negative.
    pub fn known(&self) -> Option<usize> {
        self.constant().and_then(|constant| usize::try_from(constant).ok())
    }

    /// Returns the symbol, if the size is a single symbol.
    pub fn symbol(&self) -> Option<&'static str> {
        let terms = self.terms.as_ref()?;
        match terms.iter().next() {
            Some((monomial, 1)) if terms.len() == 1 => match monomial[..] {
                [symbol] => Some(symbol),
                _ => None,
            },
            _ => None,
        }
    }

    /// The number, which may be negative, if no symbol is in it.
    pub(crate) fn constant(&self) -> Option<i64> {
        let terms = self.terms.as_ref()?;
        match terms.len() {
            0 => Some(0),
            1 => terms.get([].as_slice()).copied(),
            _ => None,
        }
    }

    /// Why this is not the size of an axis, if it is not.
    pub(crate) fn problem(&self) -> Option<String> {
        match (&self.terms, self.constant()) {
            (None, _) => Some("a size exceeds 64 bits".to_owned()),
            (_, Some(size)) if size < 0 => Some(format!("a size of {size}")),
            _ => None,
        }
    }

    /// The product of some sizes.
    pub(crate) fn product<'a>(sizes: impl IntoIterator<Item = &'a Dim>) -> Dim {
        sizes.into_iter().fold(Dim::from(1_usize), |product, size| product * size.clone())
    }

    /// Collects like terms; an overflow if a term or a sum is one.
    fn from_terms(terms: impl IntoIterator<Item = Option<(Vec<&'static str>, i64)>>) -> Self {
        let mut sum = Terms::new();
        for term in terms {
            let Some((monomial, coefficient)) = term else { return Self { terms: None } };
            let total = sum.entry(monomial).or_insert(0);
            match total.checked_add(coefficient) {
                Some(value) => *total = value,
                None => return Self { terms: None },
            }
        }
        sum.retain(|_, coefficient| *coefficient != 0);
        Self { terms: Some(sum) }
    }
}

impl From<i64> for Dim {
    fn from(constant: i64) -> Self {
        Self::from_terms([Some((Vec::new(), constant))])
    }
}

impl From<usize> for Dim {
    fn from(size: usize) -> Self {
        i64::try_from(size).map_or(Self { terms: None }, Self::from)
    }
}

impl From<&'static str> for Dim {
    fn from(symbol: &'static str) -> Self {
        Self::from_terms([Some((vec![symbol], 1))])
    }
}

impl<T: Into<Dim>> Add<T> for Dim {
    type Output = Dim;

    fn add(self, other: T) -> Dim {
        match (self.terms, other.into().terms) {
            (Some(left), Some(right)) => Self::from_terms(left.into_iter().chain(right).map(Some)),
            _ => Self { terms: None },
        }
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
        let (Some(left), Some(right)) = (self.terms, other.into().terms) else { return Self { terms: None } };
        Self::from_terms(left.iter().flat_map(|(a, x)| {
            right.iter().map(move |(b, y)| {
                let mut monomial = [a.as_slice(), b.as_slice()].concat();
                monomial.sort_unstable();
                Some((monomial, x.checked_mul(*y)?))
            })
        }))
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(terms) = &self.terms else { return f.write_str("overflow") };
        if terms.is_empty() {
            return f.write_str("0");
        }
        // Symbols come before the constant.
        let symbols = terms.iter().filter(|(monomial, _)| !monomial.is_empty());
        let constant = terms.iter().filter(|(monomial, _)| monomial.is_empty());
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
    fn an_overflow_is_kept_and_named() {
        let large = Dim::from(i64::MAX);
        let overflows = [large.clone() + 1_usize, large.clone() * 2_usize, Dim::from(i64::MIN) - 1_usize];
        for dim in overflows.into_iter().chain([Dim::from(usize::MAX), (large * "batch") * 2_usize]) {
            assert_eq!((dim.known(), dim.symbol(), dim.constant()), (None, None, None));
            assert_eq!(dim.problem().as_deref(), Some("a size exceeds 64 bits"));
            assert_eq!((dim * 2_usize + "batch").to_string(), "overflow");
        }
        assert_eq!(Dim::from(-3_i64).problem().as_deref(), Some("a size of -3"));
        assert_eq!((Dim::from("sequence") - 3_usize).problem(), None);
    }

    #[test]
    fn a_size_prints_as_one_would_write_it() {
        let t = Dim::from("sequence");
        assert_eq!((t.clone() + 3_usize).to_string(), "sequence + 3");
        assert_eq!((t * 2_usize - 1_usize).to_string(), "2·sequence - 1");
        assert_eq!(Dim::from(64_usize).to_string(), "64");
    }
}
