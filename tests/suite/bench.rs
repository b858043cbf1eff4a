//! `densessm bench` from the command line. Speeds are not checked, only that the figures exist and are consistent.

use crate::{
    bundles::{exported, golden, load, trained},
    command::{bundle, densessm, error, export, printed},
};
use densessm::{
    ExportOptions,
    bench::{BenchPlan, measure},
    proto::tolerance::ARITHMETIC_F64,
    runtime::Choice,
};
use serde_json::Value;
use std::{fs, ops::ControlFlow, path::Path, process::Command, time::Duration};

fn bench(bundle: &Path, runtime: &str) -> Command {
    let mut command = densessm();
    command.args(["bench", "--runtime", runtime, "--new-tokens", "6", "--bundle"]).arg(bundle);
    command
}

/// A number that must be there and above 0.
#[track_caller]
fn positive(value: &Value) -> f64 {
    let number = value.as_f64().unwrap_or_else(|| panic!("expected a number, got {value}"));
    assert!(number > 0.0 && number.is_finite(), "{number}");
    number
}

#[track_caller]
fn check_bound(measured: &Value) {
    let bound = &measured["bound"];
    let (speed, most) = (positive(&measured["tokens_per_second"]), positive(&bound["tokens_per_second"]));
    assert_eq!(ARITHMETIC_F64.compare(&[positive(&bound["fraction"]) * most], &[speed]), Ok(()), "{measured}");
    assert!(["read_bandwidth", "gemm"].contains(&bound["limit"].as_str().unwrap()), "{bound}");
}

#[track_caller]
fn check_decode(decode: &Value, batch: f64) {
    check_bound(decode);
    assert_eq!(decode["steps"], 6);
    let steps = &decode["step_seconds"];
    let [p50, p90, p99] = ["p50", "p90", "p99"].map(|name| positive(&steps[name]));
    assert!(p50 <= p90 && p90 <= p99, "{steps}");
    // Not all of six steps are above the slowest of them.
    assert!(positive(&decode["tokens_per_second"]) * p99 >= 0.999_999 * batch, "{decode}");
}

#[test]
fn every_runtime_is_measured_beside_its_roofline() {
    for model in [trained("densemamba-tiny"), golden("denseretnet-m1-reference-layout")] {
        let (_folder, out) = bundle(&model);
        for runtime in ["ort", "tract"] {
            let mut command = bench(&out, runtime);
            command.args(["--prompt-tokens", "1,7", "--batch", "1,2", "--threads", "1", "--json"]);
            let report: Value = serde_json::from_str(&printed(&mut command)).unwrap();
            assert_eq!((&report["runtime"], &report["threads"]), (&runtime.into(), &1.into()));
            assert_eq!(report["complete"], true);
            positive(&report["load_seconds"]);
            positive(&report["token"]["weight_bytes"]);
            positive(&report["roofline"]["read_bytes_per_second"]);
            positive(&report["roofline"]["gemm_flops_per_second"]);
            assert_eq!(
                (&report["roofline"]["read_method"], &report["roofline"]["gemm_dtype"]),
                (&"sums".into(), &"float32".into())
            );
            assert_eq!(report["token"]["dtype"], "float32");
            assert!(report["placement"].is_array(), "{report}");
            if cfg!(target_os = "linux") {
                positive(&report["peak_resident_bytes"]);
            }
            let runs = report["runs"].as_array().unwrap();
            let sizes: Vec<_> = runs.iter().map(|run| [&run["prompt_tokens"], &run["batch"]]).collect();
            assert_eq!(sizes, [[1, 1], [1, 2], [7, 1], [7, 2]]);
            for run in runs {
                let tokens = positive(&run["prompt_tokens"]) * positive(&run["batch"]);
                let prefill = &run["prefill"];
                check_bound(prefill);
                assert!(prefill["runs"].as_u64().unwrap() >= 2, "{prefill}");
                let seconds = positive(&prefill["seconds"]);
                let fed = positive(&prefill["tokens_per_second"]) * seconds;
                assert_eq!(ARITHMETIC_F64.compare(&[fed], &[tokens]), Ok(()));
                assert!(positive(&prefill["time_to_first_token_seconds"]) >= seconds, "{prefill}");
                check_decode(&run["decode"], positive(&run["batch"]));
            }
            let positions = report["positions"].as_array().unwrap();
            assert_eq!(positions.iter().map(|at| &at["position"]).collect::<Vec<_>>(), [10, 1_000, 10_000, 100_000]);
            positions.iter().for_each(|at| check_decode(&at["decode"], 1.0));
        }
    }
}

#[test]
fn a_bundle_with_one_graph_is_fed_through_that_one() {
    for mode in ["parallel", "recurrent"] {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("bundle");
        let model = golden("mamba-m0-transformers");
        printed(export(&model, &out).args(["--mode", mode]));
        let report: Value =
            serde_json::from_str(&printed(bench(&out, "tract").args(["--prompt-tokens", "3", "--json"]))).unwrap();
        assert_eq!(report["complete"], true, "{mode}");
        check_bound(&report["runs"][0]["prefill"]);
    }
}

#[test]
fn what_is_interrupted_ends_with_what_was_measured() {
    let exported = exported(&golden("densemamba-m2-both-gates"), &ExportOptions::default());
    let mut model = load(&exported.bundle, Choice::Tract);
    let plan = BenchPlan::default().with_prompt_tokens([2, 3]).with_new_tokens(4).with_positions([9]);
    // The parts: the machine, then each prompt and decoding after it, positions, the machine again. What was begun is
    // dropped.
    for (parts, runs, positions) in [(0, 0, 0), (3, 1, 0), (4, 1, 0), (6, 2, 1)] {
        let mut watch = |done, total| {
            assert_eq!(total, 7);
            if done >= parts { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let bench = measure(&mut *model, &plan, Duration::from_secs(1), &mut watch).unwrap();
        assert_eq!((bench.runs.len(), bench.positions.len(), bench.complete), (runs, positions, false), "{parts}");
        assert!(bench.report().unwrap().text(100).contains("before everything was measured"));
    }
}

#[test]
fn a_plan_of_nothing_is_an_error_of_the_library() {
    let exported = exported(&golden("densemamba-m2-both-gates"), &ExportOptions::default());
    let mut model = load(&exported.bundle, Choice::Tract);
    for (prompt_tokens, batches, new_tokens, name) in [
        (vec![], vec![1], 1, "prompt_tokens: expected numbers of at least 1, got []"),
        (vec![4, 0], vec![1], 1, "prompt_tokens: expected numbers of at least 1, got [4, 0]"),
        (vec![4], vec![], 1, "batches: expected numbers of at least 1, got []"),
        (vec![4], vec![1], 0, "new_tokens: expected numbers of at least 1, got [0]"),
    ] {
        let plan = BenchPlan::default()
            .with_prompt_tokens(prompt_tokens)
            .with_new_tokens(new_tokens)
            .with_batches(batches)
            .with_positions([9]);
        let error = measure(&mut *model, &plan, Duration::ZERO, &mut |_, _| ControlFlow::Continue(()));
        assert_eq!(error.unwrap_err().to_string(), name);
    }
}

#[test]
fn a_report_is_saved_in_the_form_its_name_asks_for() {
    let (folder, out) = bundle(&golden("densemamba-m2-both-gates"));
    let path = |name: &str| folder.path().join(name);
    let save = |name: &str| {
        let mut command = bench(&out, "tract");
        let text = printed(command.args(["--prompt-tokens", "2,5", "--batch", "1,2", "--report"]).arg(path(name)));
        (text, fs::read_to_string(path(name)).unwrap())
    };
    let (text, page) = save("report.html");
    assert!(text.contains("Decoding after the prompt") && text.contains("peak resident memory"), "{text}");
    // Prefill over prompt length and over batch, decoding over context length and over batch.
    assert_eq!(page.matches("<svg").count(), 4);
    assert!(page.contains("roofline") && page.contains("</html>"));
    let (_, markdown) = save("report.md");
    let header = "| prompt | batch | decode | roofline | limit | of roofline | p50 | p90 | p99 |\n";
    assert!(markdown.contains(header), "{markdown}");
    let (_, json) = save("report.json");
    assert_eq!(serde_json::from_str::<Value>(&json).unwrap()["runs"].as_array().unwrap().len(), 4);
}

#[test]
fn a_report_of_an_unknown_form_is_refused_before_anything_is_measured() {
    let (folder, out) = bundle(&golden("densemamba-m2-both-gates"));
    for (name, got) in [("report.txt", ".txt"), ("report", "none")] {
        let path = folder.path().join(name);
        let line = error(bench(&out, "tract").arg("--report").arg(&path));
        let expected =
            format!("error: {}: expected a name that ends in .json, .md or .html, got {got}", path.display());
        assert_eq!(line, expected);
        assert!(!path.exists());
    }
}

#[test]
fn nothing_cannot_be_measured() {
    let (_folder, out) = bundle(&golden("densemamba-m2-both-gates"));
    for flag in ["--prompt-tokens", "--batch", "--new-tokens", "--threads"] {
        let mut command = densessm();
        let line = error(command.args(["bench", flag, "0", "--bundle"]).arg(&out));
        assert!(line.contains(flag) && line.contains('0'), "{line}");
    }
}
