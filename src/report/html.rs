//! HTML: one page that contains its style and charts, and uses the reader's fonts and colour scheme.

use super::{Cell, Chart, Report, SeriesKind, Table};
use std::fmt::Write;

const STYLE: &str = include_str!("page.css");

pub(super) fn render(report: &Report) -> String {
    let title = escaped(&report.title);
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title}</title>\n<style>\n{STYLE}</style>\n<main>\n<h1>{title}</h1>\n<dl>\n"
    );
    for (name, value) in &report.facts {
        let _ = writeln!(out, "<div><dt>{}</dt><dd>{}</dd></div>", escaped(name), escaped(value));
    }
    out.push_str("</dl>\n");
    for section in &report.sections {
        let _ = writeln!(out, "<section>\n<h2>{}</h2>", escaped(&section.heading));
        if !section.paragraph.is_empty() {
            let _ = writeln!(out, "<p>{}</p>", escaped(&section.paragraph));
        }
        section.tables.iter().for_each(|table| write_table(&mut out, table));
        if !section.charts.is_empty() {
            out.push_str("<div class=\"charts\">\n");
            section.charts.iter().for_each(|chart| write_chart(&mut out, chart));
            out.push_str("</div>\n");
        }
        out.push_str("</section>\n");
    }
    out.push_str("</main>\n</html>\n");
    out
}

fn write_table(out: &mut String, table: &Table) {
    let numeric = table.numeric();
    out.push_str("<div class=\"table\"><table>\n<thead><tr>");
    for (name, &right) in table.columns.iter().zip(&numeric) {
        let _ = write!(out, "<th{}>{}</th>", class(if right { "number" } else { "" }), escaped(name));
    }
    out.push_str("</tr></thead>\n<tbody>\n");
    for row in &table.rows {
        out.push_str("<tr>");
        for (cell, &right) in row.iter().zip(&numeric) {
            let kind = match cell {
                Cell::Verdict(true) => "pass",
                Cell::Verdict(false) => "fail",
                _ if right => "number",
                _ => "",
            };
            let _ = write!(out, "<td{}>{}</td>", class(kind), escaped(&cell.to_string()));
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody>\n</table></div>\n");
}

fn class(name: &str) -> String {
    if name.is_empty() { String::new() } else { format!(" class=\"{name}\"") }
}

fn write_chart(out: &mut String, chart: &Chart) {
    let _ = write!(out, "<figure>\n<figcaption><strong>{}</strong>", escaped(&chart.title));
    for (series, colour) in chart.legend() {
        let kind = class(if series.kind == SeriesKind::Measured { "" } else { "bound" });
        let _ = write!(out, " <span><i{kind} style=\"color:{colour}\"></i>{}</span>", escaped(&series.name));
    }
    let _ = writeln!(out, "</figcaption>\n{}\n</figure>", chart.svg().trim());
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            other => out.push(other),
        }
    }
    out
}
