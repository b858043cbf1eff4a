//! A small report in every format.

use super::*;
use serde_json::json;

fn report() -> Report {
    let mut report = Report::new("speed of <model> | one", &json!({ "speed": 12.345_678 })).unwrap();
    report.fact("machine", "a & b");
    let mut table = Table::new(["what", "tokens", "speed", "check"]);
    table.row(["decode".into(), 32.into(), Cell::number(12.345_678, "tokens/s"), Cell::Verdict(true)]);
    table.row(["a|b".into(), 4096.into(), Cell::Absent, Cell::Verdict(false)]);
    let series = vec![
        Series::measured("batch 1", vec![(10.0, 5.0), (100_000.0, 5.5)]),
        Series::bound("roofline", vec![(10.0, 7.0), (100_000.0, 7.0)]),
        Series::measured("nothing", vec![]),
        Series::limit("goal", vec![(10.0, 6.0), (100_000.0, 6.0)]),
    ];
    let chart = Chart::new("speed", Axis::log("position"), Axis::linear("tokens/s"), series);
    let paragraph = "The number of tokens generated per second.";
    report.sections.push(Section::new("decode").paragraph(paragraph).table(table).chart(chart));
    report
}

#[test]
fn numbers_keep_their_significant_digits() {
    for (value, digits, text) in [
        (12.345, 3, "12.3"),
        (9.996, 3, "10.0"),
        (0.012_34, 2, "0.012"),
        (123_456.7, 3, "123457"),
        (3.21e-7, 2, "3.2e-7"),
        (-2.5e12, 2, "-2.5e12"),
        (0.0, 3, "0"),
        (f64::NAN, 3, "NaN"),
        (f64::INFINITY, 3, "inf"),
    ] {
        assert_eq!(cell::rounded(value, digits), text);
    }
}

#[test]
fn a_table_on_a_terminal_lines_up() {
    let text = report().text(80);
    let table = "\n  what    tokens          speed  check\n  decode      32  12.3 tokens/s  pass\n  a|b       4096              –  FAIL\n";
    assert!(text.ends_with(table), "{text}");
}

#[test]
fn names_of_columns_take_several_lines_where_one_does_not_fit() {
    let mut report = Report::new("", &json!(null)).unwrap();
    let mut table = Table::new(["error as % of tolerance", "at"]);
    table.row([Cell::percent(0.5), 3.into()]);
    report.sections.push(Section::new("").table(table));
    let expected = "   error as\n       % of\n  tolerance  at\n     50.0 %   3\n";
    assert!(report.text(20).ends_with(expected), "{}", report.text(20));
    assert!(report.text(80).contains("  error as % of tolerance  at\n"), "{}", report.text(80));
}

#[test]
fn a_table_wider_than_the_terminal_becomes_records_and_paragraphs_wrap() {
    let text = report().text(24);
    assert!(text.contains("The number of tokens\ngenerated per second.\n"), "{text}");
    assert!(text.ends_with("  what    a|b\n  tokens  4096\n  speed   –\n  check   FAIL\n"), "{text}");
}

#[test]
fn markdown_escapes_what_would_break_its_tables() {
    let markdown = report().markdown();
    assert!(markdown.starts_with("# speed of \\<model> \\| one\n\n- machine: a & b\n\n## decode\n"), "{markdown}");
    assert!(markdown.contains("| what | tokens | speed | check |\n| --- | ---: | ---: | --- |\n"), "{markdown}");
    assert!(markdown.contains("| a\\|b | 4096 | – | FAIL |\n"), "{markdown}");
}

#[test]
fn a_page_holds_its_charts_and_asks_for_nothing_else() {
    let page = report().html();
    assert!(page.contains("<title>speed of &lt;model&gt; | one</title>"), "{page}");
    assert_eq!(page.matches("<svg").count(), 1);
    // Two points were measured; a bound, a limit and an empty series have no circles.
    assert_eq!(page.matches("<circle").count(), 2);
    for legend in [
        "<i style=\"color:#2f7ed8\"></i>batch 1",
        "<i class=\"bound\" style=\"color:#2f7ed8\"></i>roofline",
        "<i class=\"bound\" style=\"color:#888888\"></i>goal",
    ] {
        assert!(page.contains(legend), "{legend}");
    }
    assert!(page.contains("<td class=\"number\">12.3 tokens/s</td>") && page.contains("<td class=\"fail\">FAIL</td>"));
    let outside = page.replace("http://www.w3.org/2000/svg", "");
    for reference in ["http", "src=", "href=", "url(", "@import", "<script"] {
        assert!(!outside.contains(reference), "{reference}");
    }
}

#[test]
fn every_kind_of_axis_is_drawn_and_points_off_it_are_left_out() {
    for (x, y) in [(false, false), (false, true), (true, false), (true, true)] {
        let points = vec![(0.0, 1.0), (1.0, 1e-7), (10.0, f64::NAN), (100.0, 2.0)];
        let axis = |log: bool| Axis { title: "axis".to_owned(), log };
        let series = vec![Series::measured("s", points)];
        let svg = Chart { title: String::new(), x: axis(x), y: axis(y), series }.svg();
        assert_eq!(svg.matches("<circle").count(), if x { 2 } else { 3 }, "{x} {y}");
    }
}

#[test]
fn the_data_is_what_was_supplied_unrounded() {
    assert_eq!(serde_json::from_str::<Value>(&report().json()).unwrap(), json!({ "speed": 12.345_678 }));
}

#[test]
fn a_file_s_name_says_the_form_and_an_unknown_one_writes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    for (name, begin) in [("r.json", "{"), ("r.md", "# speed"), ("r.html", "<!doctype html>")] {
        report().save(&folder.path().join(name)).unwrap();
        assert!(std::fs::read_to_string(folder.path().join(name)).unwrap().starts_with(begin));
    }
    for (name, got) in [("r.txt", "got .txt"), ("r", "got none")] {
        let error = report().save(&folder.path().join(name)).unwrap_err().to_string();
        assert!(error.ends_with(&format!("expected a name that ends in .json, .md or .html, {got}")), "{error}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 3);
}
