//! Table cells, whose type decides how they are aligned and rounded.

use std::fmt;

/// A cell of a table.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Cell {
    /// Text.
    Text(String),
    /// A count.
    Integer(u64),
    /// A measured value.
    Number {
        /// The value, unrounded.
        value: f64,
        /// The unit; empty for a plain number.
        unit: &'static str,
        /// The number of significant digits to show; digits before the decimal point are never dropped.
        digits: usize,
    },
    /// Whether a check passed.
    Verdict(bool),
    /// A value that is unknown or was not measured.
    Absent,
}

impl Cell {
    /// Returns a measured value with three significant digits.
    pub fn number(value: f64, unit: &'static str) -> Self {
        Self::Number { value, unit, digits: 3 }
    }

    /// Returns a fraction as a percentage.
    pub fn percent(fraction: f64) -> Self {
        Self::number(100.0 * fraction, "%")
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

/// A number with the given significant digits, in scientific notation where it is far from one.
pub(super) fn rounded(value: f64, digits: usize) -> String {
    let digits = digits.max(1);
    if value == 0.0 || !value.is_finite() {
        return value.to_string();
    }
    // Rounding comes first: 9.996 rounds to 10.0, which has a digit more before its decimal point.
    let scientific = format!("{value:.*e}", digits - 1);
    let exponent = scientific.rsplit_once('e').and_then(|(_, exponent)| exponent.parse::<i32>().ok());
    match exponent {
        Some(exponent @ -3..=8) => {
            format!("{value:.*}", usize::try_from(digits as i32 - 1 - exponent).unwrap_or(0))
        }
        _ => scientific,
    }
}
