//! Reports: what a command measured, for people and for programs.
//!
//! A report is a value with typed cells and charts, which is rendered as terminal text, Markdown or HTML. The data for
//! programs (JSON) is supplied by the command beside it, with every number unrounded.

mod cell;
mod chart;
mod html;
mod markdown;
mod save;
#[cfg_attr(not(feature = "charts"), path = "no_charts.rs")]
mod svg;
mod text;

pub use cell::Cell;
pub use chart::{Axis, Chart, Series, SeriesKind};
pub use save::{Error, Format};

use serde::Serialize;
use serde_json::Value;

/// What a command measured.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Report {
    /// The title: what was done to what.
    pub title: String,
    /// The circumstances of the measurement, as names and values.
    pub facts: Vec<(String, String)>,
    /// The results.
    pub sections: Vec<Section>,
    data: Value,
}

/// A part of a report.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Section {
    /// The heading.
    pub heading: String,
    /// How to read the section; may be empty.
    pub paragraph: String,
    /// The tables.
    pub tables: Vec<Table>,
    /// The charts, which only HTML shows.
    pub charts: Vec<Chart>,
}

/// Rows of cells under named columns.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Table {
    /// The names of the columns.
    pub columns: Vec<String>,
    /// The rows, each with a cell for every column.
    pub rows: Vec<Vec<Cell>>,
}

impl Report {
    /// Returns a report without facts and sections, whose JSON is `data`.
    ///
    /// # Errors
    /// When the data cannot be represented in JSON (a map whose keys are not strings).
    pub fn new(title: impl Into<String>, data: &impl Serialize) -> Result<Self, Error> {
        let data = serde_json::to_value(data).map_err(Error::Data)?;
        Ok(Self { title: title.into(), facts: Vec::new(), sections: Vec::new(), data })
    }

    /// Adds a circumstance.
    pub fn fact(&mut self, name: impl Into<String>, value: impl Into<String>) {
        self.facts.push((name.into(), value.into()));
    }

    /// Returns the data for programs as indented JSON.
    pub fn json(&self) -> String {
        format!("{:#}\n", self.data)
    }

    /// Returns the report as text for a terminal of `width` columns, without its charts. With `usize::MAX` tables take
    /// any width.
    pub fn text(&self, width: usize) -> String {
        text::render(self, width)
    }

    /// Returns the report in Markdown, without its charts.
    pub fn markdown(&self) -> String {
        markdown::render(self)
    }

    /// Returns the report as one HTML page that needs no script, font or network.
    pub fn html(&self) -> String {
        html::render(self)
    }
}

impl Section {
    /// Returns a section that consists of its heading.
    pub fn new(heading: impl Into<String>) -> Self {
        Self { heading: heading.into(), ..Self::default() }
    }

    /// Sets the text that says how to read the section.
    pub fn paragraph(mut self, paragraph: impl Into<String>) -> Self {
        self.paragraph = paragraph.into();
        self
    }

    /// Adds a table.
    pub fn table(mut self, table: Table) -> Self {
        self.tables.push(table);
        self
    }

    /// Adds a chart.
    pub fn chart(mut self, chart: Chart) -> Self {
        self.charts.push(chart);
        self
    }
}

impl Table {
    /// Returns a table without rows.
    pub fn new<C: Into<String>>(columns: impl IntoIterator<Item = C>) -> Self {
        Self { columns: columns.into_iter().map(Into::into).collect(), rows: Vec::new() }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// Which columns hold only numbers, and are aligned to the right.
    fn numeric(&self) -> Vec<bool> {
        let numeric = |at: usize| self.rows.iter().all(|row| row.get(at).is_none_or(Cell::is_numeric));
        (0..self.columns.len()).map(numeric).collect()
    }
}

#[cfg(test)]
mod tests;
