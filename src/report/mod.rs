//! Reports: what a command measured, for people and for programs.
//!
//! The one design decision: a report is a value with typed cells and points, rendered in one of four ways; what programs
//! read (JSON) is not scraped from it but supplied by the command beside it, with every number unrounded.

mod cell;
mod chart;
mod html;
mod markdown;
mod save;
#[cfg_attr(not(feature = "charts"), path = "no_charts.rs")]
mod svg;
mod text;

pub use cell::Cell;
pub use chart::{Axis, Chart, Series};
pub use save::{Error, Format};

use serde::Serialize;
use serde_json::Value;

/// What a command found out.
#[derive(Clone, Debug)]
pub struct Report {
    /// What was done to what.
    pub title: String,
    /// Under which circumstances: names and values.
    pub facts: Vec<(String, String)>,
    /// What came out.
    pub sections: Vec<Section>,
    data: Value,
}

/// A part of a report.
#[derive(Clone, Debug, Default)]
pub struct Section {
    /// What it is about.
    pub heading: String,
    /// How to read it; may be empty.
    pub paragraph: String,
    /// Its tables.
    pub tables: Vec<Table>,
    /// Its charts; only pages have room for them.
    pub charts: Vec<Chart>,
}

/// Rows of cells under named columns.
#[derive(Clone, Debug, Default)]
pub struct Table {
    /// The columns' names.
    pub columns: Vec<String>,
    /// The rows, a cell for each column.
    pub rows: Vec<Vec<Cell>>,
}

impl Report {
    /// A report without any facts or sections yet, of which programs are to read `data`.
    ///
    /// # Errors
    /// When the data has no form in JSON (a map whose keys are not strings).
    pub fn new(title: impl Into<String>, data: &impl Serialize) -> Result<Self, Error> {
        let data = serde_json::to_value(data).map_err(Error::Data)?;
        Ok(Self { title: title.into(), facts: Vec::new(), sections: Vec::new(), data })
    }

    /// Adds a circumstance.
    pub fn fact(&mut self, name: impl Into<String>, value: impl Into<String>) {
        self.facts.push((name.into(), value.into()));
    }

    /// The data for programs, indented.
    pub fn json(&self) -> String {
        format!("{:#}\n", self.data)
    }

    /// The report for a terminal of that many columns, or for any if that is `usize::MAX`; charts are left out.
    pub fn text(&self, width: usize) -> String {
        text::render(self, width)
    }

    /// The report in Markdown; charts are left out.
    pub fn markdown(&self) -> String {
        markdown::render(self)
    }

    /// The report as one page that needs nothing else: no script, no font, no network.
    pub fn html(&self) -> String {
        html::render(self)
    }
}

impl Table {
    /// A table without rows.
    pub fn new<const N: usize>(columns: [&str; N]) -> Self {
        Self { columns: columns.map(str::to_owned).to_vec(), rows: Vec::new() }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// Which columns hold numbers only, to be set flush right.
    fn numeric(&self) -> Vec<bool> {
        let numeric = |at: usize| self.rows.iter().all(|row| row.get(at).is_none_or(Cell::is_numeric));
        (0..self.columns.len()).map(numeric).collect()
    }
}

#[cfg(test)]
mod tests;
