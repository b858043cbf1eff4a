//! Perplexity and bits per byte: recomputed independently with the reference, on every runtime and graph.

use crate::{
    bundles::{RUNTIMES, exported, load, trained},
    command::{bundle, densessm, error, printed},
};
use densessm::{
    Checkpoint, ExportOptions, Tokenizer,
    eval::{EvalOptions, TokenizedText, measure},
    parity,
    proto::{GraphKind, LogitsMode, Precision, Tolerance, ToleranceClass, tolerance::ARITHMETIC_F64},
};
use densessm_reference::Reference;
use serde_json::Value;
use std::{collections::BTreeMap, fs, ops::ControlFlow, path::PathBuf};

const MODELS: [&str; 2] = ["densemamba-tiny", "denseretnet-tiny"];

fn text() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/text/shakespeare-heldout.txt")
}

/// What an evaluation must give, token by token.
struct Expected {
    tokens: usize,
    bytes: usize,
    nats: f64,
}

/// Scores each token in the first window that contains it, unless it is that window's first.
fn expected(reference: &Reference, tokenizer: &Tokenizer, tokens: &[i64], window: usize, stride: usize) -> Expected {
    let mut logits = BTreeMap::new();
    let mut expected = Expected { tokens: 0, bytes: 0, nats: 0.0 };
    let ids: Vec<u32> = tokens.iter().map(|&id| u32::try_from(id).unwrap()).collect();
    for token in 1..tokens.len() {
        let begin = (0..).map(|number| number * stride).find(|begin| token < begin + window).unwrap();
        if begin == token {
            continue;
        }
        let rows = logits.entry(begin).or_insert_with(|| {
            let own = &tokens[begin..tokens.len().min(begin + window)];
            reference.parallel(own, &mut reference.initial_state::<f64>(), &mut ())
        });
        let row = rows.row(token - 1 - begin);
        expected.nats += row.iter().map(|x| x.exp()).sum::<f64>().ln() - row[tokens[token] as usize];
        expected.tokens += 1;
        expected.bytes +=
            tokenizer.decode(&ids[..=token]).unwrap().len() - tokenizer.decode(&ids[..token]).unwrap().len();
    }
    expected
}

/// Compares evaluations of the beginning of the text, `(tokens, window, stride)`, with the reference.
fn agrees_with_the_reference(cases: &[(usize, usize, usize)]) {
    let perplexity = Tolerance::of(ToleranceClass::Perplexity, Precision::Fp32);
    let whole = fs::read_to_string(text()).unwrap();
    for name in MODELS {
        let reference = parity::reference(&Checkpoint::open(&trained(name)).unwrap()).unwrap();
        let tokenizer = Tokenizer::open(trained(name)).unwrap();
        let exported = [LogitsMode::Last, LogitsMode::All]
            .map(|logits| exported(&trained(name), &ExportOptions::default().with_logits(logits)));
        for &(tokens, window, stride) in cases {
            let mut text = TokenizedText::new(&tokenizer, &whole).unwrap();
            text.truncate(tokens);
            let expected = expected(&reference, &tokenizer, text.tokens(), window, stride);
            let mean = (expected.nats / expected.tokens as f64).exp();
            let bits_per_byte = expected.nats / 2_f64.ln() / expected.bytes as f64;
            for (exported, graph) in exported.iter().zip([GraphKind::Recurrent, GraphKind::Parallel]) {
                for runtime in RUNTIMES {
                    let mut options = EvalOptions::new(window);
                    options.stride = stride;
                    options.batch = 3;
                    let mut model = load(&exported.bundle, runtime);
                    let got = measure(&mut *model, &text, &options, &mut |_, _| ControlFlow::Continue(())).unwrap();
                    let what = format!("{name}, {graph}, {}, {tokens} by {window} every {stride}", runtime.name());
                    println!("{what}: perplexity {}, expected {mean}", got.perplexity);
                    assert!(got.complete && got.graph == graph, "{what}: {got:?}");
                    assert_eq!((got.tokens, got.bytes), (expected.tokens, Some(expected.bytes)), "{what}");
                    for (got, expected) in [(got.perplexity, mean), (got.bits_per_byte.unwrap(), bits_per_byte)] {
                        perplexity.compare(&[got], &[expected]).unwrap_or_else(|error| panic!("{what}: {error}"));
                    }
                }
            }
        }
    }
}

#[test]
fn results_agree_with_the_reference_at_every_stride_on_every_runtime_and_graph() {
    // Disjoint windows with a short last one, overlaps of several sizes, and texts of one window and of less.
    agrees_with_the_reference(&[
        (1100, 256, 256),
        (200, 64, 48),
        (200, 64, 16),
        (70, 16, 1),
        (64, 64, 32),
        (40, 64, 64),
        (40, 64, 8),
    ]);
}

/// Half precision changes the perplexity by less than its tolerance on a processor, which computes in fp32.
#[test]
fn half_precision_keeps_the_perplexity_on_every_runtime() {
    let whole = fs::read_to_string(text()).unwrap();
    for name in MODELS {
        let mut text = TokenizedText::new(&Tokenizer::open(trained(name)).unwrap(), &whole).unwrap();
        text.truncate(4096);
        let perplexity = |precision, runtime| {
            let options = ExportOptions::default().with_logits(LogitsMode::All).with_precision(precision);
            let exported = exported(&trained(name), &options);
            let mut model = load(&exported.bundle, runtime);
            let got = measure(&mut *model, &text, &EvalOptions::new(256), &mut |_, _| ControlFlow::Continue(()));
            got.unwrap().perplexity
        };
        for runtime in RUNTIMES {
            let exact = perplexity(Precision::Fp32, runtime);
            for precision in [Precision::Fp16, Precision::Bf16] {
                let got = perplexity(precision, runtime);
                let what = format!("{name}, {precision}, {}: perplexity {got}, in fp32 {exact}", runtime.name());
                println!("{what}");
                assert_ne!(got, exact, "{what}: the weights are rounded");
                let compared = Tolerance::of(ToleranceClass::Perplexity, precision).compare(&[got], &[exact]);
                compared.unwrap_or_else(|error| panic!("{what}: {error}"));
            }
        }
    }
}

/// The longer form: `cargo test --release --test suite -- --ignored whole_text --nocapture`.
#[test]
#[ignore = "takes minutes"]
fn results_on_the_whole_text_agree_with_the_reference() {
    agrees_with_the_reference(&[(usize::MAX, 256, 256)]);
}

#[test]
fn every_byte_of_a_text_belongs_to_one_token() {
    let tokenizer = Tokenizer::open(trained("densemamba-tiny")).unwrap();
    for text in ["First Citizen:\n  Speak, speak. ", "na\u{ef}ve \u{2013} \u{65e5}\u{672c}\u{1f600}!"] {
        let mut tokenized = TokenizedText::new(&tokenizer, text).unwrap();
        let bytes =
            |text: &TokenizedText| -> usize { (0..text.tokens().len()).map(|token| text.bytes(token).unwrap()).sum() };
        assert_eq!(bytes(&tokenized), text.len(), "{text}");
        let all = tokenized.tokens().len();
        for tokens in (1..all).rev() {
            let dropped = tokenized.bytes(tokens).unwrap();
            let before = bytes(&tokenized);
            tokenized.truncate(tokens);
            assert_eq!(bytes(&tokenized), before - dropped, "{text}, {tokens} tokens");
        }
    }
}

#[test]
fn tokens_of_an_unknown_text_have_no_bits_per_byte() {
    let exported = exported(&trained("densemamba-tiny"), &ExportOptions::default());
    let mut model = load(&exported.bundle, RUNTIMES[1]);
    let text = TokenizedText::from_tokens(vec![1, 2, 3]);
    let got = measure(&mut *model, &text, &EvalOptions::default(), &mut |_, _| ControlFlow::Continue(())).unwrap();
    assert_eq!((got.tokens, got.bytes, got.bits_per_byte), (2, None, None));
    assert!(got.report().unwrap().text(200).contains('–'));
}

#[test]
fn the_command_reports_and_checks_a_threshold() {
    let (folder, out) = bundle(&trained("densemamba-tiny"));
    let mut command = densessm();
    command.arg("eval").arg("--bundle").arg(&out).arg("--text").arg(text());
    command.args(["--runtime", "tract", "--max-tokens", "300", "--window", "128", "--stride", "64"]);
    let report: Value = serde_json::from_str(&printed(command.arg("--json"))).unwrap();
    assert_eq!(report["tokens"], 299);
    let perplexity = report["perplexity"].as_f64().unwrap();
    let number = |name: &str| report[name].as_f64().unwrap();
    assert_eq!(ARITHMETIC_F64.compare(&[number("nats_per_token").exp()], &[perplexity]), Ok(()));
    let bits = number("nats_per_token") * number("tokens") / 2_f64.ln();
    assert_eq!(ARITHMETIC_F64.compare(&[number("bits_per_byte") * number("bytes")], &[bits]), Ok(()));
    assert!((1.0..400.0).contains(&perplexity), "{perplexity}");

    let path = folder.path().join("eval.html");
    let passed = command.args(["--threshold", "400", "--report"]).arg(&path).output().unwrap();
    assert_eq!(passed.status.code(), Some(0));
    assert!(fs::read_to_string(path).unwrap().contains("<th class=\"number\">bits per byte</th>"));
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
