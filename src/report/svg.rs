//! Charts drawn as SVG, whose text has the colour of the page.
//!
//! Nothing here depends on the fonts of the machine: the drawing library places text by an estimate of its size, and
//! the browser sets it.

use super::{Axis, Chart, Series, SeriesKind, cell::rounded};
use plotters::prelude::SVGBackend;
use plotters::{
    chart::ChartBuilder,
    coord::{
        combinators::IntoLogRange,
        ranged1d::{AsRangedCoord, Ranged, ValueFormatter},
    },
    drawing::{DrawingAreaErrorKind, IntoDrawingArea},
    element::Circle,
    series::{DashedLineSeries, LineSeries},
    style::{Color, IntoFont, RGBColor, ShapeStyle},
};
use std::ops::Range;

/// The size of a chart in its own units; the page scales it.
const SIZE: (u32, u32) = (640, 360);
/// The colours of the series, in order: of medium lightness, so that they are visible on white and on black.
const COLOURS: [RGBColor; 6] = [
    RGBColor(0x2f, 0x7e, 0xd8),
    RGBColor(0xd9, 0x74, 0x26),
    RGBColor(0x2a, 0x9d, 0x5c),
    RGBColor(0xb0, 0x5c, 0xc4),
    RGBColor(0xcf, 0x4a, 0x5a),
    RGBColor(0x2b, 0x9a, 0xa8),
];
/// Above this number of points, dots are small.
const MANY: usize = 20;
const GREY: RGBColor = RGBColor(0x88, 0x88, 0x88);

impl Axis {
    fn shows(&self, value: f64) -> bool {
        value.is_finite() && (!self.log || value > 0.0)
    }

    /// The range of the values with a margin at both ends; a linear range includes `from`.
    fn range(&self, values: impl Iterator<Item = f64>, from: Option<f64>) -> Range<f64> {
        let from = from.filter(|_| !self.log);
        let (low, high) =
            values.chain(from).fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
        match (low <= high, self.log) {
            (false, _) => 1.0..10.0,
            (true, true) => low / 1.25..high * 1.25,
            (true, false) => {
                let margin = if high > low { 0.06 * (high - low) } else { 0.5 * high.abs().max(1.0) };
                let below = if from == Some(low) { 0.0 } else { margin };
                low - below..high + margin
            }
        }
    }
}

impl Chart {
    /// The legend: each series with its colour in CSS notation.
    pub(super) fn legend(&self) -> impl Iterator<Item = (&Series, String)> {
        let css = |RGBColor(r, g, b): RGBColor| format!("#{r:02x}{g:02x}{b:02x}");
        self.series.iter().zip(self.colours()).map(move |(series, colour)| (series, css(colour)))
    }

    fn colours(&self) -> impl Iterator<Item = RGBColor> {
        let mut measured = 0;
        self.series.iter().map(move |series| match series.kind {
            SeriesKind::Limit => GREY,
            SeriesKind::Measured | SeriesKind::Bound => {
                measured += usize::from(series.kind == SeriesKind::Measured);
                COLOURS[measured.saturating_sub(1) % COLOURS.len()]
            }
        })
    }

    /// The chart as an `<svg>` element.
    pub(super) fn svg(&self) -> String {
        let shown: Vec<Vec<(f64, f64)>> = self
            .series
            .iter()
            .map(|series| series.points.iter().copied().filter(|&(x, y)| self.x.shows(x) && self.y.shows(y)).collect())
            .collect();
        let x = self.x.range(shown.iter().flatten().map(|point| point.0), None);
        let y = self.y.range(shown.iter().flatten().map(|point| point.1), Some(0.0));
        let (base_x, base_y) = (base(&x), base(&y));
        let mut svg = String::new();
        let drawn = match (self.x.log, self.y.log) {
            (false, false) => self.draw(&mut svg, x, y, &shown),
            (true, false) => self.draw(&mut svg, x.log_scale().base(base_x), y, &shown),
            (false, true) => self.draw(&mut svg, x, y.log_scale().base(base_y), &shown),
            (true, true) => self.draw(&mut svg, x.log_scale().base(base_x), y.log_scale().base(base_y), &shown),
        };
        // Drawing into a string fails only if the axes do not fit, and SIZE is large enough for them.
        drawn.map_or(String::new(), |()| svg)
    }

    fn draw<X, Y>(
        &self,
        svg: &mut String,
        x: X,
        y: Y,
        shown: &[Vec<(f64, f64)>],
    ) -> Result<(), DrawingAreaErrorKind<std::io::Error>>
    where
        X: AsRangedCoord<Value = f64>,
        Y: AsRangedCoord<Value = f64>,
        X::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
        Y::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
    {
        let area = SVGBackend::with_string(svg, SIZE).into_drawing_area();
        let mut chart = ChartBuilder::on(&area)
            .margin(12)
            .margin_right(24)
            .x_label_area_size(44)
            .y_label_area_size(72)
            .build_cartesian_2d(x, y)?;
        chart
            .configure_mesh()
            .x_desc(self.x.title.as_str())
            .y_desc(self.y.title.as_str())
            .x_labels(8)
            .y_labels(6)
            .x_label_formatter(&|value| tick(*value))
            .y_label_formatter(&|value| tick(*value))
            .label_style(("sans-serif", 15).into_font())
            .axis_desc_style(("sans-serif", 16).into_font())
            .axis_style(GREY)
            .bold_line_style(GREY.mix(0.25))
            .light_line_style(GREY.mix(0.0))
            .draw()?;
        for ((points, series), colour) in shown.iter().zip(&self.series).zip(self.colours()) {
            let (points, style) = (points.iter().copied(), ShapeStyle::from(colour).stroke_width(2));
            if series.kind == SeriesKind::Measured {
                chart.draw_series(LineSeries::new(points.clone(), style))?;
                let radius = if points.len() > MANY { 2 } else { 4 };
                chart.draw_series(points.map(|point| Circle::new(point, radius, colour.filled())))?;
            } else {
                chart.draw_series(DashedLineSeries::new(points, 6, 5, style))?;
            }
        }
        area.present()
    }
}

/// The base of a logarithmic axis's labels: ten, or two for short ranges.
fn base(range: &Range<f64>) -> f64 {
    if range.end / range.start < 100.0 { 2.0 } else { 10.0 }
}

/// A label of an axis: with suffixes for thousands and millions, and without trailing zeros.
fn tick(value: f64) -> String {
    let (value, suffix) = match value.abs() {
        size if (1e4..1e6).contains(&size) => (value / 1e3, "k"),
        size if (1e6..1e9).contains(&size) => (value / 1e6, "M"),
        _ => (value, ""),
    };
    let label = rounded(value, 4);
    let (digits, exponent) = label.find('e').map_or((label.as_str(), ""), |at| label.split_at(at));
    let digits = if digits.contains('.') { digits.trim_end_matches('0').trim_end_matches('.') } else { digits };
    format!("{digits}{exponent}{suffix}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_short() {
        for (value, label) in [(0.0, "0"), (2.5, "2.5"), (1000.0, "1000"), (1.5e5, "150k"), (2e6, "2M"), (1e-7, "1e-7")]
        {
            assert_eq!(tick(value), label);
        }
    }
}
