//! Text for a terminal: tables with aligned columns, or a list of records where the columns do not fit.

use super::{Report, Table};
use std::fmt::Write;

/// The greatest width of a paragraph.
const WIDEST: usize = 100;
/// The spaces before each column.
const GAP: usize = 2;

pub(super) fn render(report: &Report, width: usize) -> String {
    let mut out = format!("{}\n", report.title);
    let names = report.facts.iter().map(|(name, _)| length(name)).max().unwrap_or(0);
    for (name, value) in &report.facts {
        let _ = writeln!(out, "  {}  {value}", padded(name, names, false));
    }
    for section in &report.sections {
        let _ = writeln!(out, "\n{}", section.heading);
        for line in wrapped(&section.paragraph, width.min(WIDEST)) {
            let _ = writeln!(out, "{line}");
        }
        for table in &section.tables {
            out.push('\n');
            write_table(&mut out, table, width);
        }
    }
    out
}

fn write_table(out: &mut String, table: &Table, width: usize) {
    let rows: Vec<Vec<String>> = table.rows.iter().map(|row| row.iter().map(ToString::to_string).collect()).collect();
    let numeric = table.numeric();
    let fits = |widths: &Vec<usize>| widths.iter().map(|width| width + GAP).sum::<usize>() <= width;
    let of_cells = |at: usize| rows.iter().filter_map(|row| row.get(at)).map(|cell| length(cell)).max().unwrap_or(0);
    let widths = |of_name: fn(&str) -> usize| -> Vec<usize> {
        table.columns.iter().enumerate().map(|(at, name)| of_name(name).max(of_cells(at))).collect()
    };
    // The columns' names take one line if they fit, otherwise a line for every word.
    let longest_word = |name: &str| name.split_whitespace().map(length).max().unwrap_or(0);
    let Some(widths) = [widths(length), widths(longest_word)].into_iter().find(fits) else {
        return write_records(out, &table.columns, &rows);
    };
    let names: Vec<Vec<String>> =
        table.columns.iter().zip(&widths).map(|(name, &width)| wrapped(name, width)).collect();
    let height = names.iter().map(Vec::len).max().unwrap_or(0);
    let header = (0..height).map(|line| {
        // The last lines of all names share a line.
        let of_column =
            |name: &Vec<String>| (line + name.len()).checked_sub(height).and_then(|at| name.get(at)).cloned();
        names.iter().map(|name| of_column(name).unwrap_or_default()).collect()
    });
    for row in header.collect::<Vec<Vec<String>>>().iter().chain(&rows) {
        let cells = row.iter().zip(&widths).zip(&numeric);
        let line: String =
            cells.map(|((cell, &width), &right)| format!("{:GAP$}{}", "", padded(cell, width, right))).collect();
        let _ = writeln!(out, "{}", line.trim_end());
    }
}

/// Each row as lines of a name and a value.
fn write_records(out: &mut String, columns: &[String], rows: &[Vec<String>]) {
    let names = columns.iter().map(|name| length(name)).max().unwrap_or(0);
    for (number, row) in rows.iter().enumerate() {
        if number > 0 {
            out.push('\n');
        }
        for (name, cell) in columns.iter().zip(row) {
            let _ = writeln!(out, "  {}  {cell}", padded(name, names, false));
        }
    }
}

/// The lines of a text; only a word that is wider than `width` exceeds it.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut().filter(|line| length(line) + 1 + length(word) <= width) {
            Some(line) => *line = format!("{line} {word}"),
            None => lines.push(word.to_owned()),
        }
    }
    lines
}

fn length(text: &str) -> usize {
    text.chars().count()
}

fn padded(text: &str, width: usize, right: bool) -> String {
    if right { format!("{text:>width$}") } else { format!("{text:<width$}") }
}
