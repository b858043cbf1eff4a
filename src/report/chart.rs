//! Line charts as values, independent of how they are drawn.

/// A line chart: series of points over common axes.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Chart {
    /// The title.
    pub title: String,
    /// The horizontal axis.
    pub x: Axis,
    /// The vertical axis.
    pub y: Axis,
    /// The series. Points that an axis cannot show are left out: those that are not finite and, on a logarithmic
    /// axis, those that are not positive.
    pub series: Vec<Series>,
}

impl Chart {
    /// Returns a chart of series over two axes.
    pub fn new(title: impl Into<String>, x: Axis, y: Axis, series: Vec<Series>) -> Self {
        Self { title: title.into(), x, y, series }
    }
}

/// An axis of a chart.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Axis {
    /// The quantity, with its unit.
    pub title: String,
    /// Whether the axis is logarithmic.
    pub log: bool,
}

impl Axis {
    /// Returns a linear axis.
    pub fn linear(title: impl Into<String>) -> Self {
        Self { title: title.into(), log: false }
    }

    /// Returns a logarithmic axis.
    pub fn log(title: impl Into<String>) -> Self {
        Self { title: title.into(), log: true }
    }
}

/// Points that a line joins.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Series {
    /// The name in the legend.
    pub name: String,
    /// The points `(x, y)` by rising x.
    pub points: Vec<(f64, f64)>,
    /// What the series shows, which decides how it is drawn.
    pub kind: SeriesKind,
}

/// What a series shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SeriesKind {
    /// Measured values: a solid line in a colour of its own, with a dot at each point.
    Measured,
    /// A bound of the series before it: a dashed line in that series' colour.
    Bound,
    /// A limit for all series: a dashed grey line.
    Limit,
}

impl Series {
    /// Returns a series of measured values.
    pub fn measured(name: impl Into<String>, points: Vec<(f64, f64)>) -> Self {
        Self { name: name.into(), points, kind: SeriesKind::Measured }
    }

    /// Returns a bound of the series before it.
    pub fn bound(name: impl Into<String>, points: Vec<(f64, f64)>) -> Self {
        Self { name: name.into(), points, kind: SeriesKind::Bound }
    }

    /// Returns a limit for all series.
    pub fn limit(name: impl Into<String>, points: Vec<(f64, f64)>) -> Self {
        Self { name: name.into(), points, kind: SeriesKind::Limit }
    }
}
