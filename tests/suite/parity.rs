//! Parity passes correct bundles and locates errors: each planted one is a mistake that exporters make.

use crate::{
    bundles::{golden, models, trained},
    command::{bundle, densessm, error, export, printed},
};
use densessm::proto::{
    onnx::{GraphProto, ModelProto, NodeProto},
    tolerance::HEADROOM,
};
use prost::Message;
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

fn parity(bundle: &Path, model: &Path) -> Command {
    let mut command = densessm();
    command.arg("parity").arg("--bundle").arg(bundle).arg("--model").arg(model);
    command
}

#[test]
fn every_model_passes_on_every_runtime() {
    for model in models() {
        let (_folder, out) = bundle(&model);
        let new_tokens: u64 = if out_of_training(&model) { 256 } else { 32 };
        let mut command = parity(&out, &model);
        command.args(["--runtimes", "ort,tract", "--json", "--new-tokens", &new_tokens.to_string()]);
        let report: Value = serde_json::from_str(&printed(&mut command)).unwrap();
        assert_eq!(report["passed"], true, "{report:#}");
        for measure in report["measures"].as_array().unwrap() {
            let [error, tolerance] = ["max_error", "tolerance"].map(|key| measure[key].as_f64().unwrap());
            assert!(error < HEADROOM * tolerance, "{}: {measure}", model.display());
        }
        let greedy = report["greedy"].as_array().unwrap();
        let compared = |greedy: &Value| greedy["tokens"] == new_tokens && greedy["diverged"].is_null();
        assert!(greedy.len() == 2 && greedy.iter().all(compared), "{report:#}");
        // Layers are inspected only for a report.
        assert_eq!(report["by_layer"].as_array().unwrap().len(), 0);
    }
}

/// Processors compute with the weights as stored, in fp32: the tolerances are those of fp32.
#[test]
fn every_model_in_half_precision_passes_on_every_runtime() {
    let folder = tempfile::tempdir().unwrap();
    for (index, model) in models().into_iter().enumerate() {
        for precision in ["fp16", "bf16"] {
            let lowering = ["function", "inline"][(index + usize::from(precision == "bf16")) % 2];
            let out = folder.path().join(format!("{index}-{precision}"));
            printed(export(&model, &out).args(["--precision", precision, "--lowering", lowering]));
            let mut command = parity(&out, &model);
            command.args(["--runtimes", "ort,tract", "--json", "--new-tokens", "8"]);
            let report: Value = serde_json::from_str(&printed(&mut command)).unwrap();
            assert_eq!(report["passed"], true, "{report:#}");
            for measure in report["measures"].as_array().unwrap() {
                let [error, tolerance] = ["max_error", "tolerance"].map(|key| measure[key].as_f64().unwrap());
                assert!(error < HEADROOM * tolerance, "{}, {precision}: {measure}", model.display());
            }
            // The rounding itself is far larger than what fp32 arithmetic allows, and reported.
            let rounding = &report["rounding"];
            assert_eq!(rounding["mode"], format!("matrices rounded to {precision}"));
            let change = rounding["max_error"].as_f64().unwrap();
            let allowed = report["measures"][0]["tolerance"].as_f64().unwrap();
            assert!(change > 0.1 * allowed, "{}, {precision}: {change} of {allowed}", model.display());
        }
    }
}

#[test]
fn values_inside_half_precision_graphs_are_compared_by_layer() {
    let folder = tempfile::tempdir().unwrap();
    for (model, precision) in [("densemamba-m2-both-gates", "bf16"), ("denseretnet-m1-reference-layout", "fp16")] {
        let (out, report) = (folder.path().join(model), folder.path().join(format!("{model}.json")));
        printed(export(&golden(model), &out).args(["--precision", precision]));
        let mut command = parity(&out, &golden(model));
        printed(command.args(["--runtimes", "ort,tract", "--new-tokens", "2", "--report"]).arg(&report));
        let report: Value = serde_json::from_slice(&fs::read(report).unwrap()).unwrap();
        let curves = report["by_layer"].as_array().unwrap();
        assert_eq!(curves.len(), 4, "two graphs on two runtimes");
        for point in curves.iter().flat_map(|curve| curve["points"].as_array().unwrap()) {
            let [error, tolerance] = ["max_error", "tolerance"].map(|key| point[key].as_f64().unwrap());
            assert!(error < HEADROOM * tolerance, "{model}: {point}");
        }
    }
}

/// Whether a model was trained; the text of a random one is of no interest.
fn out_of_training(model: &Path) -> bool {
    model.join("greedy.json").is_file()
}

#[test]
fn a_long_run_stays_with_the_reference_and_reports_are_saved() {
    let model = trained("densemamba-tiny");
    let (folder, out) = bundle(&model);
    let text = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/text/shakespeare-heldout.txt");
    for (name, sign) in [("report.html", "<svg"), ("report.md", "| layer |"), ("report.json", "\"by_layer\"")] {
        let path = folder.path().join(name);
        let mut command = parity(&out, &model);
        command.args(["--runtimes", "tract", "--drift", "300", "--new-tokens", "8", "--text"]).arg(&text);
        let printed = printed(command.arg("--report").arg(&path));
        assert!(printed.contains("Long run") && printed.contains("passed"), "{printed}");
        assert!(fs::read_to_string(path).unwrap().contains(sign), "{name}");
    }
}

#[test]
fn export_verifies_what_it_wrote() {
    let folder = tempfile::tempdir().unwrap();
    for model in ["densemamba-m3-state-gate-linear-untied", "denseretnet-m1-reference-layout"] {
        let out = folder.path().join(model);
        let output = export(&golden(model), &out).arg("--verify").output().unwrap();
        assert_eq!(output.status.code(), Some(0));
        assert!(String::from_utf8(output.stderr).unwrap().contains("verified: max error is"));
    }
}

#[test]
fn what_cannot_be_compared_is_an_error() {
    let (folder, out) = bundle(&golden("denseretnet-m0"));
    let other = golden("densemamba-m2-both-gates");
    let line = error(parity(&out, &golden("denseretnet-m0")).args(["--runtimes", "tract", "--prompt-tokens", "2"]));
    assert!(line.contains("expected 4 tokens or more"), "{line}");
    let line = error(parity(&out, &other).args(["--report", "report.pdf"]));
    assert!(line.contains(".json"), "{line}");
    assert!(error(&mut parity(&out, folder.path())).contains("config.json"));
}

/// A mistake, and the layer that it sits in.
struct Planted {
    what: &'static str,
    model: &'static str,
    layer: Option<u64>,
    plant: fn(&mut Bundle),
}

/// A bundle to plant errors in.
struct Bundle {
    dir: PathBuf,
    parallel: ModelProto,
    recurrent: ModelProto,
}

impl Bundle {
    fn open(dir: &Path) -> Self {
        let read = |name: &str| ModelProto::decode(&*fs::read(dir.join(name)).unwrap()).unwrap();
        Self { dir: dir.to_owned(), parallel: read("parallel.onnx"), recurrent: read("recurrent.onnx") }
    }

    fn graphs(&mut self) -> [&mut GraphProto; 2] {
        [&mut self.parallel, &mut self.recurrent].map(|model| model.graph.as_mut().unwrap())
    }

    /// Changes a node in both graphs, by the end of its name.
    fn nodes(&mut self, name: &str, change: impl Fn(&mut NodeProto)) {
        for graph in self.graphs() {
            let matching: Vec<&mut NodeProto> =
                graph.node.iter_mut().filter(|node| node.name.ends_with(name)).collect();
            assert_eq!(matching.len(), 1, "{name}");
            matching.into_iter().for_each(&change);
        }
    }

    /// Changes the layer's operator, whose name depends on the graph.
    fn operators(&mut self, layer: &str, names: [&str; 2], change: impl Fn(&mut NodeProto)) {
        for (graph, name) in self.graphs().into_iter().zip(names) {
            let node = graph.node.iter_mut().find(|node| node.op_type == name && node.name.contains(layer));
            change(node.unwrap());
        }
    }

    /// Changes a weight as it is stored.
    fn weight(&mut self, name: &str, change: impl Fn(&[usize], &mut [f32])) {
        let [graph, _] = self.graphs();
        let tensor = graph.initializer.iter().find(|tensor| tensor.name.ends_with(name)).unwrap();
        let number = |key: &str| -> usize {
            tensor.external_data.iter().find(|entry| entry.key == key).unwrap().value.parse().unwrap()
        };
        let (offset, length) = (number("offset"), number("length"));
        let shape: Vec<usize> = tensor.dims.iter().map(|&size| size as usize).collect();
        let path = self.dir.join("model.onnx.data");
        let mut data = fs::read(&path).unwrap();
        let bytes = &mut data[offset..offset + length];
        let mut values: Vec<f32> = bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
        change(&shape, &mut values);
        bytes.copy_from_slice(&values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>());
        fs::write(path, data).unwrap();
    }

    /// Writes the graphs, and their sizes into the manifest.
    fn save(&self) {
        let path = self.dir.join("densessm.json");
        let mut manifest: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        for (name, model) in [("parallel.onnx", &self.parallel), ("recurrent.onnx", &self.recurrent)] {
            let bytes = model.encode_to_vec();
            let files = manifest["files"].as_array_mut().unwrap();
            let entry = files.iter_mut().find(|file| file["name"] == name).unwrap();
            entry["size"] = bytes.len().into();
            fs::write(self.dir.join(name), bytes).unwrap();
        }
        fs::write(path, manifest.to_string()).unwrap();
    }
}

const SCAN: [&str; 2] = ["SelectiveScan", "SelectiveStep"];
const RETENTION: [&str; 2] = ["Retention", "RetentionStep"];
const MAMBA: &str = "densemamba-m2-both-gates";
const RETNET: &str = "denseretnet-m2-hub-layout-4-heads";

fn to_identity(node: &mut NodeProto, operand: usize) {
    node.op_type = "Identity".to_owned();
    node.input = vec![node.input[operand].clone()];
}

/// Puts a node before all others.
fn before(graph: &mut GraphProto, op: &str, inputs: &[&str], output: &str) {
    let node = NodeProto {
        name: output.to_owned(),
        op_type: op.to_owned(),
        input: inputs.iter().map(|&input| input.to_owned()).collect(),
        output: vec![output.to_owned()],
        ..NodeProto::default()
    };
    graph.node.insert(0, node);
}

const PLANTED: [Planted; 17] = [
    Planted {
        what: "the output gate and the channels' gate are swapped",
        model: MAMBA,
        layer: Some(2),
        plant: |bundle| {
            bundle.operators("layers/2/", SCAN, |node| {
                let gate = if node.op_type == "SelectiveScan" { 10 } else { 9 };
                node.input.swap(8, gate);
            });
        },
    },
    Planted {
        what: "the step graph's positions are one too far",
        model: RETNET,
        layer: Some(0),
        plant: |bundle| {
            let [_, recurrent] = bundle.graphs();
            let one = recurrent.initializer.iter().find(|tensor| tensor.name == "literal/1").unwrap().name.clone();
            for node in recurrent.node.iter_mut().filter(|node| node.op_type == "Unsqueeze") {
                node.input
                    .iter_mut()
                    .filter(|input| *input == "past_length")
                    .for_each(|input| *input = "shifted".into());
            }
            before(recurrent, "Add", &["past_length", &one], "shifted");
        },
    },
    Planted {
        what: "the keys are not scaled",
        model: RETNET,
        layer: Some(1),
        plant: |bundle| bundle.nodes("layers/1/self_attn/Mul_1", |node| to_identity(node, 0)),
    },
    Planted {
        what: "a projection of neighbours' states is transposed",
        model: "densemamba-m3-state-gate-linear-untied",
        layer: Some(3),
        plant: |bundle| {
            bundle.weight("layers.3.mixer.dense.projections.1.weight", |shape, values| {
                let old = values.to_vec();
                let n = shape[0];
                (0..n * n).for_each(|i| values[i] = old[i % n * n + i / n]);
            });
        },
    },
    Planted {
        what: "a layer takes a padded row for two tokens longer",
        model: MAMBA,
        layer: Some(1),
        plant: |bundle| {
            let [parallel, _] = bundle.graphs();
            let scan = parallel.node.iter_mut().find(|node| node.name.contains("layers/1/") && node.op_type == SCAN[0]);
            scan.unwrap().input[9] = "longer".to_owned();
            before(parallel, "ReduceMax", &["sequence_lengths"], "longest");
            parallel.node.insert(
                1,
                NodeProto {
                    name: "longer".into(),
                    op_type: "Max".into(),
                    input: vec!["sequence_lengths".into(), "longest".into()],
                    output: vec!["longer".into()],
                    ..NodeProto::default()
                },
            );
        },
    },
    Planted {
        what: "one weight of one layer is off",
        model: MAMBA,
        layer: Some(1),
        plant: |bundle| bundle.weight("layers.1.mixer.out_proj.weight", |_, values| values[7] += 0.5),
    },
    Planted {
        what: "the skip is left out",
        model: MAMBA,
        layer: Some(3),
        plant: |bundle| bundle.weight("layers.3.mixer.D", |_, values| values.fill(0.0)),
    },
    Planted {
        what: "the convolution's taps are in reverse",
        model: MAMBA,
        layer: Some(0),
        plant: |bundle| {
            bundle.weight("layers.0.mixer.conv1d.weight", |shape, values| {
                let rows: Vec<Vec<f32>> = values.chunks(shape[1]).rev().map(<[f32]>::to_vec).collect();
                values.copy_from_slice(&rows.concat());
            });
        },
    },
    Planted {
        what: "decay rates have the wrong sign's exponential",
        model: MAMBA,
        layer: Some(4),
        plant: |bundle| {
            bundle.weight("layers.4.mixer.A_log", |_, values| values.iter_mut().for_each(|a| *a = 1.0 / *a))
        },
    },
    Planted {
        what: "the step sizes' bias is left out",
        model: MAMBA,
        layer: Some(2),
        plant: |bundle| bundle.weight("layers.2.mixer.dt_proj.bias", |_, values| values.fill(0.0)),
    },
    Planted {
        what: "a layer forgets the residual stream",
        model: MAMBA,
        layer: Some(2),
        plant: |bundle| bundle.nodes("backbone/layers/2/Add", |node| to_identity(node, 1)),
    },
    Planted {
        what: "two layers' states are handed on in each other's place",
        model: MAMBA,
        layer: Some(1),
        plant: |bundle| {
            for graph in bundle.graphs() {
                let [one, other] = [1, 2].map(|layer| format!("present.{layer}.recurrent_state"));
                for name in graph.node.iter_mut().flat_map(|node| node.output.iter_mut().chain(&mut node.input)) {
                    if *name == one {
                        name.clone_from(&other);
                    } else if *name == other {
                        name.clone_from(&one);
                    }
                }
            }
        },
    },
    Planted {
        what: "queries and keys are swapped",
        model: RETNET,
        layer: Some(1),
        plant: |bundle| bundle.operators("layers/1/", RETENTION, |node| node.input.swap(0, 1)),
    },
    Planted {
        what: "the norm of the keys is off in one place",
        model: RETNET,
        layer: Some(2),
        plant: |bundle| bundle.weight("layers.2.self_attn.k_norm.weight", |_, values| values[0] += 0.5),
    },
    Planted {
        what: "the heads' norm has another epsilon",
        model: RETNET,
        layer: Some(0),
        plant: |bundle| {
            bundle.operators("layers/0/", RETENTION, |node| {
                node.attribute.iter_mut().filter(|a| a.name == "epsilon").for_each(|a| a.f = Some(0.1));
            });
        },
    },
    Planted {
        what: "a gate's weight is in reverse",
        model: RETNET,
        layer: Some(2),
        plant: |bundle| bundle.weight("layers.2.self_attn.k_select.fc2.weight", |_, values| values.reverse()),
    },
    Planted {
        what: "the embedding is scaled",
        model: MAMBA,
        layer: None,
        plant: |bundle| bundle.weight("embeddings.weight", |_, values| values.iter_mut().for_each(|x| *x *= 1.1)),
    },
];

#[test]
fn planted_errors_are_found_and_named() {
    for Planted { what, model, layer, plant } in PLANTED {
        let model = golden(model);
        let (_folder, out) = bundle(&model);
        let mut planted = Bundle::open(&out);
        plant(&mut planted);
        planted.save();
        for runtime in ["ort", "tract"] {
            let output =
                parity(&out, &model).args(["--json", "--new-tokens", "4", "--runtimes", runtime]).output().unwrap();
            let text = String::from_utf8(output.stdout).unwrap();
            let errors = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(1), "{what}, {runtime}: {errors}");
            let report: Value = serde_json::from_str(&text).unwrap();
            assert_eq!(report["passed"], false, "{what}, {runtime}");
            if let Some(layer) = layer {
                let found = report["mismatches"].as_array().unwrap();
                assert!(!found.is_empty(), "{what}, {runtime}: nothing was found");
                assert!(found.iter().all(|found| found["layer"] == layer), "{what}, {runtime}: {found:#?}");
            }
        }
    }
}

/// The curves of a report: their runtimes and graphs, with their points.
fn curves<'r>(report: &'r Value, name: &str) -> Vec<(String, &'r Vec<Value>)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let curves = report[name].as_array().unwrap().iter();
    curves.map(|c| (text(&c["runtime"]) + " " + &text(&c["graph"]), c["points"].as_array().unwrap())).collect()
}

#[test]
fn a_report_holds_the_errors_of_every_position_and_layer_of_every_runtime_and_graph() {
    for model in [golden(MAMBA), golden(RETNET)] {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("bundle");
        printed(export(&model, &out).args(["--logits", "all"]));
        let mut command = parity(&out, &model);
        command.args(["--runtimes", "ort,tract", "--prompt-tokens", "40", "--new-tokens", "4", "--json", "--report"]);
        let path = folder.path().join("report.html");
        let report: Value = serde_json::from_str(&printed(command.arg(&path))).unwrap();
        let layers = serde_json::from_slice::<Value>(&fs::read(model.join("config.json")).unwrap()).unwrap()
            ["num_hidden_layers"]
            .as_u64()
            .unwrap();
        for (name, count) in [("by_position", 40), ("by_layer", layers)] {
            let curves = curves(&report, name);
            let names: Vec<&str> = curves.iter().map(|(name, _)| name.as_str()).collect();
            assert_eq!(names, ["ort parallel", "ort recurrent", "tract parallel", "tract recurrent"], "{name}");
            for (_, points) in curves {
                let at: Vec<u64> = points.iter().map(|point| point["at"].as_u64().unwrap()).collect();
                assert_eq!(at, (0..count).collect::<Vec<_>>(), "{name}");
                for point in points {
                    let [error, tolerance] = ["max_error", "tolerance"].map(|key| point[key].as_f64().unwrap());
                    assert!(error > 0.0 && error < HEADROOM * tolerance, "{name}: {point}");
                }
            }
        }
        let page = fs::read_to_string(path).unwrap();
        assert_eq!(page.matches("<svg").count(), 2);
        for title in ["Error by position", "Error by layer", "max error as % of tolerance", "tract, recurrent"] {
            assert!(page.contains(title), "{title}");
        }
    }
}

#[test]
fn the_error_by_layer_rises_where_an_error_is_planted() {
    let model = golden(MAMBA);
    let (folder, out) = bundle(&model);
    let mut planted = Bundle::open(&out);
    planted.weight("layers.3.mixer.D", |_, values| values.fill(0.0));
    planted.save();
    let path = folder.path().join("report.json");
    let mut command = parity(&out, &model);
    let output = command.args(["--runtimes", "tract", "--new-tokens", "0", "--report"]).arg(&path).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    for (graph, points) in curves(&report, "by_layer") {
        let fractions = points.iter().map(|p| p["max_error"].as_f64().unwrap() / p["tolerance"].as_f64().unwrap());
        let failing: Vec<usize> = fractions.enumerate().filter(|(_, f)| *f > 1.0).map(|(layer, _)| layer).collect();
        assert_eq!(failing.first(), Some(&3), "{graph}: {failing:?}");
    }
}

/// Renames a value in a graph and its readers.
fn rename(graph: &mut GraphProto, from: &str, to: &str) {
    let mut renamed = 0;
    for name in graph.node.iter_mut().flat_map(|node| node.output.iter_mut().chain(&mut node.input)) {
        if name == from {
            to.clone_into(name);
            renamed += 1;
        }
    }
    assert!(renamed > 1, "{from}");
    graph.value_info.retain(|info| info.name != from);
}

#[test]
fn a_missing_probe_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("report.json");
    // The layers' outputs are inspected for a report, other values only to locate an error: here that of a weight whose
    // value comes earlier, so that the search would end there if it did not look up every probe first.
    for (model, graph, value, name, wrong_weight) in [
        (MAMBA, 0, "backbone/layers/1/Add", "backbone.layers.1", None),
        (
            MAMBA,
            1,
            "backbone/layers/2/mixer/x_proj/MatMul",
            "backbone.layers.2.mixer.x_proj",
            Some("embeddings.weight"),
        ),
        (RETNET, 1, "model/layers/3/Add", "model.layers.3", None),
        (
            RETNET,
            0,
            "model/layers/1/self_attn/Retention.0",
            "model.layers.1.self_attn.retention",
            Some("embed_tokens.weight"),
        ),
    ] {
        let model = golden(model);
        let (_folder, out) = bundle(&model);
        let mut changed = Bundle::open(&out);
        rename(changed.graphs()[graph], value, "renamed");
        if let Some(weight) = wrong_weight {
            changed.weight(weight, |_, values| values.reverse());
        }
        changed.save();
        for runtime in ["ort", "tract"] {
            let mut command = parity(&out, &model);
            command.args(["--runtimes", runtime, "--new-tokens", "0"]);
            let line = error(if wrong_weight.is_some() { &mut command } else { command.arg("--report").arg(&path) });
            let graph = ["parallel", "recurrent"][graph];
            assert!(line.contains(&format!("{graph} graph: probe `{name}`: expected the value `{value}`")), "{line}");
            assert!(!path.exists());
        }
    }
}
