//! Markdown, with tables in GitHub's syntax.

use super::{Report, Table};
use std::fmt::Write;

pub(super) fn render(report: &Report) -> String {
    let mut out = format!("# {}\n", escaped(&report.title));
    if !report.facts.is_empty() {
        out.push('\n');
    }
    for (name, value) in &report.facts {
        let _ = writeln!(out, "- {}: {}", escaped(name), escaped(value));
    }
    for section in &report.sections {
        let _ = write!(out, "\n## {}\n", escaped(&section.heading));
        if !section.paragraph.is_empty() {
            let _ = write!(out, "\n{}\n", escaped(&section.paragraph));
        }
        for table in &section.tables {
            write_table(&mut out, table);
        }
    }
    out
}

fn write_table(out: &mut String, table: &Table) {
    let line = |cells: &mut dyn Iterator<Item = String>| format!("| {} |\n", cells.collect::<Vec<_>>().join(" | "));
    out.push('\n');
    out.push_str(&line(&mut table.columns.iter().map(|name| escaped(name))));
    let rules = table.numeric().into_iter().map(|right| if right { "---:" } else { "---" }.to_owned());
    out.push_str(&line(&mut rules.into_iter()));
    for row in &table.rows {
        out.push_str(&line(&mut row.iter().map(|cell| escaped(&cell.to_string()))));
    }
}

/// Text as one line, in which the characters that Markdown would interpret are escaped.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.split_whitespace().collect::<Vec<_>>().join(" ").chars() {
        if matches!(character, '|' | '<' | '*' | '_' | '`' | '\\' | '[' | ']' | '#') {
            out.push('\\');
        }
        out.push(character);
    }
    out
}
