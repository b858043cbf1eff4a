//! The command line: what it prints, what it writes and its exit codes.

use crate::bundles::{golden, trained};
use safetensors::SafeTensors;
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};
use tempfile::TempDir;

pub(crate) fn densessm() -> Command {
    Command::new(env!("CARGO_BIN_EXE_densessm"))
}

/// Runs a command that must succeed and returns what it printed.
pub(crate) fn printed(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{command:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a command that must fail with an error, and returns its one line.
pub(crate) fn error(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let line = String::from_utf8(stderr).unwrap();
    assert_eq!(status.code(), Some(2), "{command:?}: {line}");
    assert!(stdout.is_empty(), "{command:?} printed {stdout:?}");
    assert!(line.starts_with("error: "), "{line}");
    line.trim_end().to_owned()
}

pub(crate) fn export(model: &Path, out: &Path) -> Command {
    let mut command = densessm();
    command.arg("export").arg("--model").arg(model).arg("--out").arg(out);
    command
}

/// A bundle of a model in a folder of its own.
pub(crate) fn bundle(model: &Path) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("bundle");
    printed(&mut export(model, &out));
    (folder, out)
}

fn generate(bundle: &Path) -> Command {
    let mut command = densessm();
    command.arg("generate").arg("--bundle").arg(bundle).args(["--runtime", "tract"]);
    command
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn export_writes_a_bundle_and_nothing_beside_it() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("bundle");
    let text = printed(&mut export(&trained("densemamba-tiny"), &out));
    assert!(text.contains("parallel.onnx") && text.contains("model.onnx.data"), "{text}");
    assert_eq!(names(folder.path()), ["bundle"]);
    assert_eq!(
        names(&out),
        [
            "config.json",
            "densessm.json",
            "generation_config.json",
            "model.onnx.data",
            "parallel.onnx",
            "recurrent.onnx",
            "tokenizer.json",
            "tokenizer_config.json"
        ]
    );
    let manifest: Value = serde_json::from_slice(&fs::read(out.join("densessm.json")).unwrap()).unwrap();
    assert_eq!(manifest["architecture"]["family"], "dense_mamba");
    assert_eq!(manifest["state_bytes_per_sequence"], 6 * (320 * 3 + 320 * 16) * 4);
}

#[test]
fn export_for_tensorrt_writes_inline_graphs_and_describes_their_deployment() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("bundle");
    printed(export(&trained("denseretnet-tiny"), &out).args(["--target", "tensorrt"]));
    let manifest: Value = serde_json::from_slice(&fs::read(out.join("densessm.json")).unwrap()).unwrap();
    assert_eq!(manifest["lowering"], "inline");
    let readme = fs::read_to_string(out.join("README.md")).unwrap();
    for graph in manifest["graphs"].as_array().unwrap() {
        assert!(readme.contains(&format!("trtexec --onnx={}", graph["file"].as_str().unwrap())), "{readme}");
        let states = graph["outputs"].as_array().unwrap().iter().filter(|output| output["name"] != "logits");
        for name in states.chain(graph["inputs"].as_array().unwrap()).map(|tensor| tensor["name"].as_str().unwrap()) {
            assert!(readme.contains(&format!("| `{name}` |")), "{name}: {readme}");
        }
    }
    let shapes = "--maxShapes=input_ids:64x1,past_length:64,past_key_values.0.recurrent_state:64x2x48x192,";
    assert!(readme.contains(shapes), "{readme}");

    let mut both = export(&trained("denseretnet-tiny"), &folder.path().join("other"));
    let line = error(both.args(["--target", "tensorrt", "--lowering", "function"]));
    assert!(line.contains("expected lowering inline for the target tensorrt, got function"), "{line}");
    assert_eq!(names(folder.path()), ["bundle"]);
}

#[test]
fn export_replaces_a_bundle_only_when_told_to_and_never_anything_else() {
    let (folder, out) = bundle(&golden("denseretnet-m0"));
    let line = error(&mut export(&golden("denseretnet-m0"), &out));
    assert!(line.contains("exists already") && line.contains("--force"), "{line}");
    printed(export(&golden("mamba-m0-transformers"), &out).args(["--force", "--mode", "recurrent"]));
    assert_eq!(names(&out), ["config.json", "densessm.json", "model.onnx.data", "recurrent.onnx"]);

    let precious = folder.path().join("precious");
    fs::create_dir(&precious).unwrap();
    fs::write(precious.join("thesis.tex"), "years").unwrap();
    let line = error(export(&golden("denseretnet-m0"), &precious).arg("--force"));
    assert!(line.contains("refusing to replace a folder without densessm.json"), "{line}");
    assert_eq!(names(&precious), ["thesis.tex"]);
    assert_eq!(names(folder.path()), ["bundle", "precious"]);
}

#[test]
fn equal_exports_are_equal_to_the_byte() {
    let (_one, a) = bundle(&golden("densemamba-m2-both-gates"));
    let (_two, b) = bundle(&golden("densemamba-m2-both-gates"));
    for name in names(&a) {
        assert_eq!(fs::read(a.join(&name)).unwrap(), fs::read(b.join(&name)).unwrap(), "{name}");
    }
}

#[test]
fn generate_streams_the_text_that_the_model_was_trained_to_say() {
    let (_folder, out) = bundle(&trained("densemamba-tiny"));
    let text = printed(generate(&out).args(["--prompt", "KING RICHARD:\n", "--max-new-tokens", "20"]));
    assert!(text.starts_with("Then, Buckingham, and Green\n"), "{text}");
    let stopped = printed(generate(&out).args(["--prompt", "KING RICHARD:\n", "--stop", ", and Gr"]));
    assert_eq!(stopped, "Then, Buckingham\n");
    let sampled =
        |seed: &str| printed(generate(&out).args(["--prompt", "KING", "--seed", seed, "--max-new-tokens", "30"]));
    assert_eq!(sampled("7"), sampled("7"));
    assert_ne!(sampled("7"), sampled("8"));
}

#[test]
fn generate_goes_on_from_a_saved_state_as_if_it_had_not_stopped() {
    for model in ["densemamba-tiny", "denseretnet-tiny"] {
        let (folder, out) = bundle(&trained(model));
        let state = folder.path().join("state");
        let ids = |command: &mut Command| {
            let report: Value = serde_json::from_str(&printed(command.arg("--json"))).unwrap();
            assert!(report["device"] == "cpu" && report["placement"].is_array(), "{report}");
            report["token_ids"].as_array().unwrap().clone()
        };
        let mut whole = generate(&out);
        // On the CPU, the options for GPUs have no effect.
        whole.args(["--no-cuda-graph", "--allow-operator-fallback"]);
        let whole = ids(whole.args(["--prompt", "KING RICHARD:\n", "--max-new-tokens", "30"]));
        let mut first = generate(&out);
        first.args(["--prompt", "KING RICHARD:\n", "--max-new-tokens", "12", "--save-state"]).arg(&state);
        let mut parts = ids(&mut first);
        parts.extend(ids(generate(&out).args(["--max-new-tokens", "18", "--load-state"]).arg(&state)));
        assert_eq!(parts, whole, "{model}");
    }
}

#[cfg(unix)]
#[test]
fn an_interrupt_ends_a_generation_with_what_was_made() {
    use std::{io::Read, process::Stdio};
    let (folder, out) = bundle(&trained("densemamba-tiny"));
    let state = folder.path().join("state");
    let mut command = generate(&out);
    command.args(["--prompt", "KING", "--max-new-tokens", "100000000", "--save-state"]).arg(&state);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 20]).unwrap();
    let interrupt = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(interrupt.success());
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(rest.ends_with('\n'), "{rest}");
    assert!(!printed(generate(&out).args(["--max-new-tokens", "3", "--load-state"]).arg(&state)).trim().is_empty());
}

#[test]
fn run_feeds_a_graph_by_name() {
    let model = golden("denseretnet-m1-reference-layout");
    let (folder, out) = bundle(&model);
    for runtime in ["tract", "ort"] {
        let outputs = folder.path().join("outputs");
        let mut command = densessm();
        command.args(["run", "--graph", "parallel", "--runtime", runtime, "--bundle"]).arg(&out);
        // A golden's tokens and lengths are named as the graph's inputs are; its logits are not an input.
        let bytes = fs::read(model.join("golden.safetensors")).unwrap();
        let golden = SafeTensors::deserialize(&bytes).unwrap();
        let inputs = ["input_ids", "sequence_lengths"].map(|name| (name, golden.tensor(name).unwrap()));
        fs::write(folder.path().join("inputs"), safetensors::serialize(inputs, None).unwrap()).unwrap();
        printed(command.arg("--inputs").arg(folder.path().join("inputs")).arg("--outputs").arg(&outputs));
        let bytes = fs::read(&outputs).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let (batch, vocabulary) = (golden.tensor("logits").unwrap().shape()[0], 96);
        assert_eq!(tensors.tensor("logits").unwrap().shape(), [batch, 1, vocabulary]);
        assert_eq!(tensors.tensor("present.3.recurrent_state").unwrap().shape(), [batch, 2, 16, 64]);
        let lengths = |name: &str, tensors: &SafeTensors<'_>| tensors.tensor(name).unwrap().data().to_vec();
        let present: Vec<i64> =
            lengths("present_length", &tensors).as_chunks().0.iter().map(|&b| i64::from_le_bytes(b)).collect();
        let given: Vec<i64> =
            lengths("sequence_lengths", &golden).as_chunks().0.iter().map(|&b| i32::from_le_bytes(b).into()).collect();
        assert_eq!(present, given, "{runtime}");
    }
}

#[test]
fn inspect_counts_what_is_there() {
    let (_folder, out) = bundle(&trained("denseretnet-tiny"));
    let report: Value = serde_json::from_str(&printed(densessm().arg("inspect").arg("--json").arg(&out))).unwrap();
    let recurrent = &report["graphs"][1];
    assert_eq!(recurrent["operators"]["ai.densessm.RetentionStep"], 6);
    // What is multiplied with a layer's input is one product; then the output's, the gates' of all layers but the
    // first, and the head's.
    assert_eq!(recurrent["operators"]["MatMul"], 6 * 2 + 5 * 2 + 1);
    let weights = &recurrent["weights"]["float"]["bytes"];
    assert!(weights.as_u64().unwrap() > 7_000_000, "{weights}");
    assert_eq!(report["token"]["state_bytes"], 2 * (6 * 2 * 48 * 192 * 4 + 8));

    let text = printed(densessm().arg("inspect").arg(out.join("parallel.onnx")));
    assert!(text.contains("function ai.densessm.Retention: "), "{text}");
    assert!(text.contains("input  past_key_values.0.recurrent_state: float[batch, 2, 48, 192]"), "{text}");
}

#[test]
fn doctor_says_what_can_be_used_and_why_the_rest_cannot() {
    let text = printed(densessm().arg("doctor"));
    assert!(text.contains("tract cpu      yes"), "{text}");
    assert!(text.contains("tract cuda     no  tract on cuda: runs on the processor only; use --runtime ort"), "{text}");
    let text = printed(densessm().arg("doctor").env("ORT_DYLIB_PATH", "/nowhere/libonnxruntime.so"));
    assert!(text.contains("ort   cpu      no  ONNX Runtime: ORT_DYLIB_PATH: no file at /nowhere"), "{text}");
    let report: Value = serde_json::from_str(&printed(densessm().args(["doctor", "--json"]))).unwrap();
    for row in report["runtimes"].as_array().unwrap() {
        assert_eq!(row["version"].is_string(), row["usable"] == true, "{row}");
        assert!(!row["detail"].as_str().unwrap().is_empty(), "{row}");
    }
}

#[test]
fn doctor_names_every_library_that_a_gpu_needs_and_the_package_that_brings_it() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("kernels");
    fs::create_dir(&cache).unwrap();
    fs::write(cache.join("entry"), [0; 2_000]).unwrap();
    let doctor = || {
        let mut command = densessm();
        command.arg("doctor").env("DENSESSM_CACHE_DIR", &cache).env("DENSESSM_NVRTC", folder.path());
        command
    };
    let text = printed(&mut doctor());
    let cached = format!("{}, writable, 1 entries, 2.0 kB", cache.display());
    for line in ["driver ", "NVRTC ", "cuda provider ", "tensorrt provider ", "tensorrt: ", &cached] {
        assert!(text.contains(line), "{line}: {text}");
    }
    let report: Value = serde_json::from_str(&printed(doctor().arg("--json"))).unwrap();
    let findings = report["gpu"].as_array().unwrap();
    let finding = |name: &str| findings.iter().find(|finding| finding["name"].as_str().unwrap().starts_with(name));
    for name in ["driver", "NVRTC", "cuda provider", "libcublas.so", "libcublasLt.so", "libcudart.so", "libcurand.so"] {
        let finding = finding(name).unwrap_or_else(|| panic!("{name}: {report:#}"));
        assert!(!finding["detail"].as_str().unwrap().is_empty() && finding["package"].is_string(), "{finding}");
    }
    // The variable names a folder without NVRTC, which is not replaced by another one.
    let nvrtc = finding("NVRTC").unwrap();
    assert_eq!(nvrtc["found"], false, "{nvrtc}");
    assert!(nvrtc["detail"].as_str().unwrap().contains("nvidia-cuda-nvrtc"), "{nvrtc}");
    let cache = finding("kernel cache").unwrap();
    assert_eq!((&cache["entries"], &cache["bytes"], &cache["writable"]), (&1.into(), &2_000.into(), &true.into()));
}

#[test]
fn version_states_kernels_features_and_runtimes_in_its_long_form() {
    let short = printed(densessm().arg("-V"));
    assert_eq!(short, format!("densessm {}\n", env!("CARGO_PKG_VERSION")));
    for command in [&["--version"][..], &["export", "--version"]] {
        let long = printed(densessm().args(command).env("ORT_DYLIB_PATH", "/nowhere/libonnxruntime.so"));
        assert!(long.starts_with(&short), "{long}");
        for line in
            ["kernels:  ", "features: ort, tract\n", "runtime:  tract 0.", "runtime:  ONNX Runtime: ORT_DYLIB_PATH: "]
        {
            assert!(long.contains(line), "{line}: {long}");
        }
    }
}

#[test]
fn completions_and_manual_pages_cover_every_command() {
    let commands = ["export", "generate", "run", "bench", "parity", "eval", "inspect", "init", "serve", "doctor"];
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = printed(densessm().args(["completions", shell]));
        for word in commands.into_iter().chain(["max-new-tokens"]) {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("new").join("man");
    printed(densessm().args(["man", "--out"]).arg(&out));
    for command in commands {
        let page = fs::read_to_string(out.join(format!("densessm-{command}.1"))).unwrap();
        assert!(page.contains(".SH NAME") && page.contains(".SH OPTIONS"), "{command}: {page}");
    }
    assert!(fs::read_to_string(out.join("densessm.1")).unwrap().contains("Exit codes"));
}

#[test]
fn help_states_every_option_in_a_sentence() {
    for command in
        ["export", "generate", "run", "bench", "parity", "eval", "inspect", "init", "doctor", "completions", "man"]
    {
        let help = printed(densessm().args([command, "--help"]));
        let help = help.to_lowercase();
        for word in ["so many", "let pass", "card", "likeliest", "behind the", "argmax", "without a pattern"] {
            assert!(!help.contains(word), "{command}: `{word}` in {help}");
        }
    }
}

#[test]
fn auto_takes_tract_where_there_is_no_onnx_runtime_and_says_so() {
    let (_folder, out) = bundle(&trained("densemamba-tiny"));
    let mut command = densessm();
    command.arg("generate").arg("--bundle").arg(&out).args(["--prompt", "KING", "--max-new-tokens", "2"]);
    let output = command.env("ORT_DYLIB_PATH", "/nowhere/libonnxruntime.so").output().unwrap();
    assert!(output.status.success());
    assert!(String::from_utf8(output.stderr).unwrap().starts_with("running on tract"));
}

#[test]
fn a_device_that_cannot_be_used_is_an_error() {
    let (_folder, out) = bundle(&trained("densemamba-tiny"));
    for runtime in ["auto", "ort", "tract"] {
        let mut command = densessm();
        command.args(["generate", "--runtime", runtime, "--device", "cuda", "--prompt", "KING", "--bundle"]).arg(&out);
        // Where a GPU can be used, there is no error to show.
        let doctor = printed(densessm().arg("doctor"));
        if runtime == "tract" || doctor.contains("ort   cuda     no") {
            assert!(error(&mut command).contains("cuda"), "{runtime}");
        }
    }
}

#[test]
fn a_device_that_does_not_exist_is_an_error_of_the_option() {
    for (device, problem) in [
        ("gpu", "expected cpu, cuda[:N] or tensorrt[:N], got `gpu`"),
        ("cpu:1", "expected cpu without an index, got `cpu:1`"),
        ("cuda:x", "expected a device index from 0 up after the colon, got `x`"),
    ] {
        let line = error(densessm().args(["generate", "--bundle", "none", "--device", device]));
        assert!(line.contains("--device") && line.contains(problem), "{line}");
    }
}

#[test]
fn a_gpu_is_named_with_its_index_where_it_cannot_be_used() {
    let (_folder, out) = bundle(&golden("densemamba-m2-both-gates"));
    for device in ["cuda:1", "tensorrt:3"] {
        let line = error(densessm().args(["bench", "--runtime", "tract", "--device", device, "--bundle"]).arg(&out));
        assert_eq!(line, format!("error: tract on {device}: runs on the processor only; use --runtime ort for a GPU"));
    }
}

#[test]
fn a_closed_pipe_is_no_error() {
    let (_folder, out) = bundle(&golden("densemamba-m2-both-gates"));
    let mut command = densessm();
    let mut child = command
        .arg("inspect")
        .arg(&out)
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
}
