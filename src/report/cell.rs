//! What stands in a table: a type says how it is set and rounded.

use std::fmt;

/// A cell of a table.
#[derive(Clone, Debug, PartialEq)]
pub enum Cell {
    /// Words.
    Text(String),
    /// A count.
    Integer(u64),
    /// A measured value.
    Number {
        /// The value, unrounded.
        value: f64,
        /// Its unit; empty for a ratio.
        unit: &'static str,
        /// Significant digits to show; digits before the point are never dropped.
        digits: usize,
    },
    /// Whether a check was passed.
    Verdict(bool),
    /// Not known, or not measured.
    Absent,
}

impl Cell {
    /// A measured value with three significant digits.
    pub fn number(value: f64, unit: &'static str) -> Self {
        Self::Number { value, unit, digits: 3 }
    }

    /// A part of a whole, in per cent.
    pub fn percent(fraction: f64) -> Self {
        Self::Number { value: 100.0 * fraction, unit: "%", digits: 3 }
    }

    pub(super) fn is_numeric(&self) -> bool {
        matches!(self, Self::Integer(_) | Self::Number { .. } | Self::Absent)
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<usize> for Cell {
    fn from(count: usize) -> Self {
        Self::Integer(count as u64)
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Integer(count) => write!(f, "{count}"),
            Self::Number { value, unit: "", digits } => f.write_str(&rounded(*value, *digits)),
            Self::Number { value, unit, digits } => write!(f, "{} {unit}", rounded(*value, *digits)),
            Self::Verdict(true) => f.write_str("pass"),
            Self::Verdict(false) => f.write_str("FAIL"),
            Self::Absent => f.write_str("–"),
        }
    }
}

/// A number with that many significant digits, in powers of ten where it is far from one.
pub(super) fn rounded(value: f64, digits: usize) -> String {
    let digits = digits.max(1);
    if value == 0.0 || !value.is_finite() {
        return value.to_string();
    }
    // Rounded first: 9.996 has one digit more before its point than it seems to.
    let scientific = format!("{value:.*e}", digits - 1);
    let exponent = scientific.rsplit_once('e').and_then(|(_, exponent)| exponent.parse::<i32>().ok());
    match exponent {
        Some(exponent @ -3..=8) => {
            format!("{value:.*}", usize::try_from(digits as i32 - 1 - exponent).unwrap_or(0))
        }
        _ => scientific,
    }
}
