//! Line charts as values: what to draw, and not how.

/// Series of points over common axes.
#[derive(Clone, Debug, PartialEq)]
pub struct Chart {
    /// What it shows.
    pub title: String,
    /// The axis to the right.
    pub x: Axis,
    /// The axis upwards.
    pub y: Axis,
    /// The series; points without a place on the axes (not finite, or not positive on a logarithmic one) are left out.
    pub series: Vec<Series>,
}

/// An axis of a chart.
#[derive(Clone, Debug, PartialEq)]
pub struct Axis {
    /// What it counts, with its unit.
    pub title: String,
    /// Whether it is logarithmic.
    pub log: bool,
}

/// Points joined by a line.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// Its name in the legend.
    pub name: String,
    /// `(x, y)`, from left to right.
    pub points: Vec<(f64, f64)>,
    /// Whether it is a bound of the series before it: dashed, and in that one's colour.
    pub bound: bool,
}

impl Series {
    /// What was measured.
    pub fn measured(name: impl Into<String>, points: Vec<(f64, f64)>) -> Self {
        Self { name: name.into(), points, bound: false }
    }

    /// What bounds the series before it.
    pub fn bound(name: impl Into<String>, points: Vec<(f64, f64)>) -> Self {
        Self { name: name.into(), points, bound: true }
    }
}

impl Axis {
    /// A linear axis.
    pub fn linear(title: impl Into<String>) -> Self {
        Self { title: title.into(), log: false }
    }

    /// A logarithmic axis.
    pub fn log(title: impl Into<String>) -> Self {
        Self { title: title.into(), log: true }
    }
}
