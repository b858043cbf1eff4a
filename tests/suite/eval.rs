//! Perplexity: by another way, by the reference, on every runtime and graph.

use crate::{
    bundles::{RUNTIMES, exported, load, trained},
    command::{bundle, densessm, error, printed},
};
use densessm::{
    Checkpoint, ExportOptions, TextPosition, Tokenizer,
    eval::{EvalOptions, measure},
    parity,
    proto::LogitsMode,
};
use serde_json::Value;
use std::{fs, ops::ControlFlow, path::PathBuf};

/// Four digits.
const DIGITS: f64 = 5e-5;

fn text() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/text/shakespeare-heldout.txt")
}

/// The reference's mean surprise over disjoint windows.
fn reference(model: &str, tokens: &[i64], window: usize) -> f64 {
    let reference = parity::reference(&Checkpoint::open(&trained(model)).unwrap()).unwrap();
    let (mut sum, mut count) = (0.0, 0);
    for window in tokens.chunks(window) {
        let logits = reference.parallel(window, &mut reference.initial_state::<f64>(), &mut ());
        for (row, &target) in logits.outer_iter().zip(&window[1..]) {
            let sum_of_exponentials: f64 = row.iter().map(|x| x.exp()).sum();
            sum += sum_of_exponentials.ln() - row[target as usize];
            count += 1;
        }
    }
    sum / f64::from(count)
}

fn agrees_with_the_reference(tokens: usize) {
    for name in ["densemamba-tiny", "denseretnet-tiny"] {
        for logits in [LogitsMode::Last, LogitsMode::All] {
            let exported = exported(&trained(name), &ExportOptions::default().with_logits(logits));
            let tokenizer = Tokenizer::open(exported.bundle.dir()).unwrap();
            let ids = tokenizer.encode(&fs::read_to_string(text()).unwrap(), TextPosition::Start).unwrap();
            let ids: Vec<i64> = ids.into_iter().map(i64::from).take(tokens).collect();
            let expected = reference(name, &ids, 256).exp();
            for runtime in RUNTIMES {
                let plan = EvalOptions { window: 256, stride: 256, batch: 3 };
                let mut model = load(&exported.bundle, runtime);
                let got = measure(&mut *model, &ids, &plan, &mut |_, _| ControlFlow::Continue(())).unwrap();
                let what =
                    format!("{name}, {logits:?}, {}: expected {expected}, got {}", runtime.name(), got.perplexity);
                assert!((got.perplexity / expected - 1.0).abs() < DIGITS, "{what}");
                assert!(got.complete && got.tokens == ids.len() - ids.len().div_ceil(256), "{what}");
                println!("{what}");
            }
        }
    }
}

#[test]
fn perplexity_agrees_with_the_reference_on_every_runtime_and_graph() {
    agrees_with_the_reference(1100);
}

/// The longer form: `cargo test --release --test suite -- --ignored whole_text --nocapture`.
#[test]
#[ignore = "takes minutes"]
fn perplexity_of_the_whole_text_agrees_with_the_reference() {
    agrees_with_the_reference(usize::MAX);
}

#[test]
fn eval_reports_and_judges() {
    let (folder, out) = bundle(&trained("densemamba-tiny"));
    let mut command = densessm();
    command.arg("eval").arg("--bundle").arg(&out).arg("--text").arg(text());
    command.args(["--runtime", "tract", "--max-tokens", "300", "--window", "128", "--stride", "64"]);
    let report: Value = serde_json::from_str(&printed(command.arg("--json"))).unwrap();
    assert_eq!(report["tokens"], 299);
    let perplexity = report["perplexity"].as_f64().unwrap();
    assert!((report["nats_per_token"].as_f64().unwrap().exp() / perplexity - 1.0).abs() < 1e-12);
    assert!((1.0..400.0).contains(&perplexity), "{perplexity}");

    let passed = command.args(["--threshold", "400"]).output().unwrap();
    assert_eq!(passed.status.code(), Some(0));
    let mut strict = densessm();
    strict.arg("eval").arg("--bundle").arg(&out).arg("--text").arg(text());
    let failed = strict.args(["--runtime", "tract", "--max-tokens", "50", "--threshold", "1"]).output().unwrap();
    assert_eq!(failed.status.code(), Some(1));

    let empty = folder.path().join("empty.txt");
    fs::write(&empty, "").unwrap();
    let refused = |arguments: &[&str], file: &PathBuf| {
        let mut command = densessm();
        command.arg("eval").arg("--bundle").arg(&out).arg("--text").arg(file).args(["--runtime", "tract"]);
        error(command.args(arguments))
    };
    assert!(refused(&[], &empty).contains("text: expected 2 tokens or more"));
    assert!(refused(&["--window", "1"], &text()).contains("window: expected 2 tokens or more, got 1"));
    assert!(refused(&["--window", "8", "--stride", "9"], &text()).contains("stride: expected 1 to the window's 8"));
}
