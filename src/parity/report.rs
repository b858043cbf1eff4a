//! What was found, for people.

use super::{Mismatch, Parity};
use crate::report::{Axis, Cell, Chart, Error, Report, Section, Series, Table};

impl Parity {
    /// The report; programs read this value itself.
    ///
    /// # Errors
    /// None that a parity can cause.
    pub fn report(&self) -> Result<Report, Error> {
        let mut report = Report::new(format!("densessm parity of {}", self.bundle), self)?;
        report.fact("result", if self.passed { "passed" } else { "FAILED" });
        report.fact("reference", "the checkpoint in f64");
        report.fact("prompt", format!("{} tokens", self.prompt_tokens));
        report.sections.push(self.forms());
        if !self.greedy.is_empty() {
            report.sections.push(self.texts());
        }
        if !self.drift.is_empty() {
            report.sections.push(self.long_run());
        }
        if !self.found.is_empty() {
            report.sections.push(found(&self.found));
        }
        Ok(report)
    }

    fn forms(&self) -> Section {
        let columns =
            ["runtime", "form", "largest error", "let pass", "mean error", "1 - cosine", "divergence", "top 1", ""];
        let mut table = Table::new(columns);
        for m in &self.measures {
            table.row([
                m.runtime.clone().into(),
                m.name.clone().into(),
                Cell::number(m.max_error, ""),
                Cell::number(m.allowed, ""),
                Cell::number(m.mean_error, ""),
                Cell::number(1.0 - m.cosine, ""),
                m.divergence.map_or(Cell::Absent, |x| Cell::number(x, "nats")),
                m.top_1.map_or(Cell::Absent, Cell::percent),
                Cell::Verdict(m.passed),
            ]);
        }
        Section {
            heading: "Every way to feed a prompt".to_owned(),
            paragraph: "Absolute errors of logits and of the states carried on, the least cosine and the largest \
                        divergence of a token's distribution, and how often the argmax token is the same."
                .to_owned(),
            tables: vec![table],
            charts: Vec::new(),
        }
    }

    fn texts(&self) -> Section {
        let mut table = Table::new(["runtime", "tokens", "near-ties", "part at", "margin", ""]);
        for greedy in &self.greedy {
            let parted = greedy.parted.as_ref();
            table.row([
                greedy.runtime.clone().into(),
                greedy.tokens.into(),
                greedy.near_ties.len().into(),
                parted.map_or(Cell::Absent, |parting| parting.position.into()),
                parted.map_or(Cell::Absent, |parting| Cell::number(parting.margin, "")),
                Cell::Verdict(greedy.passed),
            ]);
        }
        Section {
            heading: "Greedy text".to_owned(),
            paragraph: "A near-tie is a token whose choice hangs on less than what errors are let pass; the text then \
                        goes on with the reference's."
                .to_owned(),
            tables: vec![table],
            charts: Vec::new(),
        }
    }

    fn long_run(&self) -> Section {
        let mut table = Table::new(["runtime", "steps", "largest error, of what is let pass"]);
        for (runtime, points) in &self.drift {
            for (step, error) in points {
                table.row([runtime.clone().into(), (*step).into(), Cell::percent(*error)]);
            }
        }
        let line = |(runtime, points): &(String, Vec<(usize, f64)>)| {
            let points = points.iter().map(|&(step, error)| (step as f64, 100.0 * error)).collect();
            Series::measured(runtime.clone(), points)
        };
        let chart = Chart {
            title: "Error of logits over a long run".to_owned(),
            x: Axis::log("steps"),
            y: Axis::linear("% of what is let pass"),
            series: self.drift.iter().map(line).collect(),
        };
        Section {
            heading: "A long run".to_owned(),
            paragraph: "The largest error since the line before, stepping through the same tokens as the reference."
                .to_owned(),
            tables: vec![table],
            charts: vec![chart],
        }
    }
}

fn found(all: &[Mismatch]) -> Section {
    let mut table = Table::new(["runtime", "graph", "layer", "tensor", "largest error", "let pass"]);
    for found in all {
        table.row([
            found.runtime.clone().into(),
            match found.padded {
                true => format!("{}, a padded row", found.graph).into(),
                false => found.graph.clone().into(),
            },
            found.layer.map_or(Cell::Absent, Cell::from),
            found.tensor.clone().into(),
            Cell::number(found.error, ""),
            Cell::number(found.allowed, ""),
        ]);
    }
    Section {
        heading: "Where it goes wrong".to_owned(),
        paragraph: "The first value inside the graph, in the order of computation, that leaves the reference."
            .to_owned(),
        tables: vec![table],
        charts: Vec::new(),
    }
}
