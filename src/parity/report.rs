//! The report of a comparison.

use super::{ErrorCurve, ErrorPoint, Greedy, Measure, Mismatch, Parity};
use crate::report::{Axis, Cell, Chart, Error, Report, Section, Series, Table};
use std::collections::BTreeSet;

const FRACTION: &str = "max error as % of tolerance";

impl Parity {
    /// Returns the report: what was compared, a table and a chart of each kind of error, and the mismatches.
    ///
    /// Its JSON is this value itself, unrounded.
    ///
    /// # Errors
    /// As [`Report::new`]; a comparison causes none.
    pub fn report(&self) -> Result<Report, Error> {
        let mut report = Report::new(format!("densessm parity of {}", self.bundle), self)?;
        report.fact("result", if self.passed { "passed" } else { "FAILED" });
        let rounded = self.rounding.as_ref().map_or(String::new(), |rounding| format!(" with {}", rounding.mode));
        report.fact("reference", format!("the checkpoint{rounded}, computed in f64"));
        report.fact("precision", self.precision.to_string());
        report.fact("prompt", format!("{} tokens", self.prompt_tokens));
        for ran in &self.runtimes {
            report.fact(ran.runtime, format!("{} on {}", ran.version, ran.device));
            ran.placement.iter().for_each(|placement| report.fact("operators", placement.to_string()));
        }
        // What went wrong comes first.
        report.sections.extend((!self.mismatches.is_empty()).then(|| mismatches(&self.mismatches)));
        report.sections.push(modes(&self.measures));
        report.sections.extend(self.rounding.as_ref().map(rounding));
        report.sections.extend((!self.by_position.is_empty()).then(|| by_position(&self.by_position)));
        report.sections.extend((!self.by_layer.is_empty()).then(|| by_layer(&self.by_layer)));
        report.sections.extend((!self.greedy.is_empty()).then(|| greedy(&self.greedy)));
        report.sections.extend((!self.drift.is_empty()).then(|| long_run(&self.drift)));
        Ok(report)
    }
}

fn mismatches(all: &[Mismatch]) -> Section {
    let mut table = Table::new(["runtime", "graph", "layer", "tensor", "max error", "tolerance", FRACTION]);
    for mismatch in all {
        let rows = if mismatch.padded { ", padded row" } else { "" };
        table.row([
            mismatch.runtime.clone().into(),
            format!("{}{rows}", mismatch.graph).into(),
            mismatch.layer.map_or(Cell::Absent, Cell::from),
            mismatch.tensor.clone().into(),
            Cell::number(mismatch.max_error, ""),
            Cell::number(mismatch.tolerance, ""),
            Cell::percent(mismatch.max_error / mismatch.tolerance),
        ]);
    }
    let paragraph = "The first value inside each graph, in the order of computation, that is out of tolerance. \
                     Each graph was run from the reference's states, so that an error shows where it arises.";
    Section::new("First mismatch in each graph").paragraph(paragraph).table(table)
}

fn modes(measures: &[Measure]) -> Section {
    let paragraph = "Absolute errors of the logits and of the states after the prompt, for every way in which the \
                     graphs can be fed. Cosine distance and KL divergence are the largest of all vectors; the last \
                     figure is the fraction of positions at which the most likely token is the same.";
    Section::new("Execution modes").paragraph(paragraph).table(table(measures))
}

fn rounding(measure: &Measure) -> Section {
    let paragraph = "The logits of the prompt with the matrices as the bundle stores them, compared with those of the \
                     checkpoint, both computed in f64. This is what the precision changes, not an error of the bundle.";
    let mut table =
        Table::new(["values", "max change", "mean change", "cosine distance", "KL divergence", "same top token"]);
    table.row([
        measure.values.to_string().into(),
        Cell::number(measure.max_error, ""),
        Cell::number(measure.mean_error, ""),
        Cell::number(1.0 - measure.cosine, ""),
        measure.kl_divergence.map_or(Cell::Absent, |nats| Cell::number(nats, "nats")),
        measure.top_1.map_or(Cell::Absent, Cell::percent),
    ]);
    Section::new("Rounding of the weights").paragraph(paragraph).table(table)
}

fn table(measures: &[Measure]) -> Table {
    let mut table = Table::new([
        "runtime",
        "execution mode",
        "values",
        "max error",
        "tolerance",
        FRACTION,
        "mean error",
        "cosine distance",
        "KL divergence",
        "same top token",
        "result",
    ]);
    for m in measures {
        table.row([
            m.runtime.clone().into(),
            m.mode.clone().into(),
            m.values.to_string().into(),
            Cell::number(m.max_error, ""),
            Cell::number(m.tolerance, ""),
            Cell::percent(m.fraction()),
            Cell::number(m.mean_error, ""),
            Cell::number(1.0 - m.cosine, ""),
            m.kl_divergence.map_or(Cell::Absent, |nats| Cell::number(nats, "nats")),
            m.top_1.map_or(Cell::Absent, Cell::percent),
            Cell::Verdict(m.passed),
        ]);
    }
    table
}

fn by_position(curves: &[ErrorCurve]) -> Section {
    let last = curves.iter().flat_map(|curve| &curve.points).map(|point| point.at).max().unwrap_or(0);
    // Ranges of doubling length: 0, 1, 2 to 3, 4 to 7, …
    let mut ranges = vec![0..=0];
    while let Some(end) = ranges.last().map(|range| *range.end()).filter(|&end| end < last) {
        ranges.push(end + 1..=last.min(2 * end + 1));
    }
    let rows = ranges.into_iter().map(|range| {
        let name = if range.start() == range.end() {
            range.start().to_string()
        } else {
            format!("{} to {}", range.start(), range.end())
        };
        (name, range)
    });
    let table = fractions("position", curves, rows.map(|(name, range)| (name, move |at| range.contains(&at))));
    let paragraph = "The max error of the logits at each position of the prompt, over all execution modes, as % of tolerance, by \
                     the graph that computed them.";
    let chart = chart("Error by position", Axis::linear("position"), curves);
    Section::new("Error by position").paragraph(paragraph).table(table).chart(chart)
}

fn by_layer(curves: &[ErrorCurve]) -> Section {
    let layers: BTreeSet<usize> = curves.iter().flat_map(|curve| &curve.points).map(|point| point.at).collect();
    let table = fractions("layer", curves, layers.into_iter().map(|layer| (layer.to_string(), move |at| at == layer)));
    let paragraph = "The max error of each layer's output, the residual stream after it, as % of tolerance. Each graph was \
                     run from the reference's states: the parallel one on a row and a padded row, the recurrent one on \
                     single tokens.";
    let chart = chart("Error by layer", Axis::linear("layer"), curves);
    Section::new("Error by layer").paragraph(paragraph).table(table).chart(chart)
}

fn greedy(all: &[Greedy]) -> Section {
    let mut table = Table::new(["runtime", "tokens", "near-ties", "diverges at", "margin", "result"]);
    for greedy in all {
        let diverged = greedy.diverged.as_ref();
        table.row([
            greedy.runtime.clone().into(),
            greedy.tokens.into(),
            greedy.near_ties.len().into(),
            diverged.map_or(Cell::Absent, |divergence| divergence.position.into()),
            diverged.map_or(Cell::Absent, |divergence| Cell::number(divergence.margin, "")),
            Cell::Verdict(greedy.passed),
        ]);
    }
    let paragraph = "The most likely token, step by step after the prompt. At a near-tie the reference's logits of two \
                     tokens are equal within tolerance; the comparison then continues with the reference's token.";
    Section::new("Greedy decoding").paragraph(paragraph).table(table)
}

fn long_run(curves: &[ErrorCurve]) -> Section {
    let steps: BTreeSet<usize> = curves.iter().flat_map(|curve| &curve.points).map(|point| point.at).collect();
    let table = fractions("steps", curves, steps.into_iter().map(|step| (step.to_string(), move |at| at == step)));
    let paragraph = "The max error of the logits since the row before, as % of tolerance, while the runtime and the reference \
                     step through the same pseudo-random tokens.";
    let chart = chart("Error over a long run", Axis::log("steps"), curves);
    Section::new("Long run").paragraph(paragraph).table(table).chart(chart)
}

/// A row for each set of points, a column for each curve, and in the cells the largest error as a fraction of the
/// tolerance.
fn fractions<P: Fn(usize) -> bool>(
    axis: &str,
    curves: &[ErrorCurve],
    rows: impl Iterator<Item = (String, P)>,
) -> Table {
    let columns = curves.iter().map(name);
    let mut table = Table::new(std::iter::once(axis.to_owned()).chain(columns));
    for (name, belongs) in rows {
        let cell = |curve: &ErrorCurve| {
            let own = curve.points.iter().filter(|point| belongs(point.at)).map(ErrorPoint::fraction);
            own.reduce(f64::max).map_or(Cell::Absent, Cell::percent)
        };
        table.row(std::iter::once(name.into()).chain(curves.iter().map(cell)));
    }
    table
}

/// The curves over an axis, and the tolerance.
fn chart(title: &str, x: Axis, curves: &[ErrorCurve]) -> Chart {
    let percent = |point: &ErrorPoint| (point.at as f64, 100.0 * point.fraction());
    let mut series: Vec<Series> =
        curves.iter().map(|curve| Series::measured(name(curve), curve.points.iter().map(percent).collect())).collect();
    let places = || curves.iter().flat_map(|curve| &curve.points).map(|point| point.at as f64);
    let ends = [places().fold(f64::INFINITY, f64::min), places().fold(f64::NEG_INFINITY, f64::max)];
    series.push(Series::limit("tolerance", ends.map(|end| (end, 100.0)).to_vec()));
    Chart::new(title, x, Axis::log(FRACTION), series)
}

fn name(curve: &ErrorCurve) -> String {
    format!("{}, {}", curve.runtime, curve.graph)
}
