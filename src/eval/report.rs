//! What came out, for people.

use super::Evaluation;
use crate::report::{Cell, Error, Report, Section, Table};

impl Evaluation {
    /// The report; programs read this value itself.
    ///
    /// # Errors
    /// None that an evaluation can cause.
    pub fn report(&self) -> Result<Report, Error> {
        let mut report = Report::new(format!("densessm eval of {}", self.bundle), self)?;
        report.fact("runtime", self.runtime.clone());
        report.fact("graph", self.graph.clone());
        report.fact("text", format!("{} tokens", self.text_tokens));
        report.fact("windows", format!("{} tokens every {}, each from zero states", self.window, self.stride));
        if !self.complete {
            report.fact("stopped", "before the text's end");
        }
        let mut table = Table::new(["tokens predicted", "perplexity", "mean surprise", "time", "fed"]);
        let digits = |value: f64, unit, digits| Cell::Number { value, unit, digits };
        table.row([
            self.tokens.into(),
            digits(self.perplexity, "", 6),
            digits(self.nats_per_token, "nats/token", 6),
            digits(self.seconds, "s", 3),
            digits(self.tokens_per_second, "tokens/s", 3),
        ]);
        report.sections.push(Section {
            heading: "Perplexity".to_owned(),
            paragraph: "Of every token but the first of each window, given those before it in the window.".to_owned(),
            tables: vec![table],
            charts: Vec::new(),
        });
        Ok(report)
    }
}
