//! The report of an evaluation.

use super::Evaluation;
use crate::report::{Cell, Error, Report, Section, Table};

impl Evaluation {
    /// Returns the report: what was evaluated, and the results.
    ///
    /// Its JSON is this value itself, unrounded.
    ///
    /// # Errors
    /// As [`Report::new`]; an evaluation causes none.
    pub fn report(&self) -> Result<Report, Error> {
        let mut report = Report::new(format!("densessm eval of {}", self.bundle), self)?;
        report.fact("runtime", self.runtime.clone());
        report.fact("graph", self.graph.to_string());
        report.fact("text", format!("{} tokens", self.text_tokens));
        report.fact("windows", format!("{} tokens every {}, from states of zeros", self.window, self.stride));
        if !self.complete {
            report.fact("stopped", "before the end of the text");
        }
        let mut table = Table::new([
            "scored tokens",
            "scored bytes",
            "perplexity",
            "bits per byte",
            "nats per token",
            "time",
            "speed",
        ]);
        let number = |value: f64, unit, digits| Cell::Number { value, unit, digits };
        table.row([
            self.tokens.into(),
            self.bytes.map_or(Cell::Absent, Cell::from),
            number(self.perplexity, "", 6),
            self.bits_per_byte.map_or(Cell::Absent, |bits| number(bits, "", 6)),
            number(self.nats_per_token, "", 6),
            Cell::number(self.seconds, "s"),
            Cell::number(self.tokens_per_second, "tokens/s"),
        ]);
        let scored = if self.stride < self.window {
            format!(
                "Every token but the first of the text is scored once: in the first window given all tokens before \
                 it, in the others given at least {} tokens.",
                self.window - self.stride
            )
        } else {
            "Every token but the first of each window is scored, given the tokens before it in the window.".to_owned()
        };
        let paragraph = format!(
            "{scored} Perplexity is exp(total nats / scored tokens); bits per byte are total nats / (ln 2 × bytes of \
             the text that the scored tokens cover), which is independent of the tokenizer."
        );
        report.sections.push(Section::new("Perplexity and bits per byte").paragraph(paragraph).table(table));
        Ok(report)
    }
}
