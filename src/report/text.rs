//! A report for the terminal: columns that line up, and records instead where columns do not fit.

use super::{Report, Table};
use std::fmt::Write;

/// Paragraphs are set no wider than this, wherever they stand.
const WIDEST: usize = 100;
/// Between two columns.
const GAP: usize = 2;

pub(super) fn render(report: &Report, width: usize) -> String {
    let mut out = format!("{}\n", report.title);
    let names = report.facts.iter().map(|(name, _)| length(name)).max().unwrap_or(0);
    for (name, value) in &report.facts {
        let _ = writeln!(out, "  {}  {value}", padded(name, names, false));
    }
    for section in &report.sections {
        let _ = writeln!(out, "\n{}", section.heading);
        wrap(&mut out, &section.paragraph, width.min(WIDEST));
        for table in &section.tables {
            out.push('\n');
            set(&mut out, table, width);
        }
    }
    out
}

fn set(out: &mut String, table: &Table, width: usize) {
    let rows: Vec<Vec<String>> = table.rows.iter().map(|row| row.iter().map(ToString::to_string).collect()).collect();
    let numeric = table.numeric();
    let column = |at: usize| rows.iter().filter_map(move |row| row.get(at)).chain([&table.columns[at]]);
    let widths: Vec<usize> =
        (0..table.columns.len()).map(|at| column(at).map(|c| length(c)).max().unwrap_or(0)).collect();
    if widths.iter().map(|width| width + GAP).sum::<usize>() <= width {
        for row in std::iter::once(&table.columns).chain(&rows) {
            let cells = row.iter().zip(&widths).zip(&numeric);
            let line: String =
                cells.map(|((cell, &width), &right)| format!("{:GAP$}{}", "", padded(cell, width, right))).collect();
            let _ = writeln!(out, "{}", line.trim_end());
        }
        return;
    }
    let names = table.columns.iter().map(|name| length(name)).max().unwrap_or(0);
    for (number, row) in rows.iter().enumerate() {
        if number > 0 {
            out.push('\n');
        }
        for (name, cell) in table.columns.iter().zip(row) {
            let _ = writeln!(out, "  {}  {cell}", padded(name, names, false));
        }
    }
}

fn wrap(out: &mut String, paragraph: &str, width: usize) {
    let mut at = 0;
    for word in paragraph.split_whitespace() {
        if at > 0 && at + 1 + length(word) > width {
            out.push('\n');
            at = 0;
        }
        if at > 0 {
            out.push(' ');
            at += 1;
        }
        out.push_str(word);
        at += length(word);
    }
    if at > 0 {
        out.push('\n');
    }
}

fn length(text: &str) -> usize {
    text.chars().count()
}

fn padded(text: &str, width: usize, right: bool) -> String {
    if right { format!("{text:>width$}") } else { format!("{text:<width$}") }
}
