//! Small random models over the whole space of configurations: the export of each agrees with the reference. A failure is
//! reduced to the smallest configuration that still fails.

use crate::bundles::{LOWERINGS, RUNTIMES};
use densessm::{Bundle, Checkpoint, ExportOptions, export, parity};
use proptest::{prelude::*, test_runner::TestRunner};
use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};
use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Value, json};
use std::{fs, ops::ControlFlow, path::Path};

/// Models of each family.
const CASES: u32 = 12;

/// A configuration and the tensors that belong to it.
#[derive(Clone, Debug)]
struct Small {
    config: Value,
    tensors: Vec<(String, Vec<usize>)>,
    seed: u64,
}

prop_compose! {
    fn mamba()(
        (hidden, layers, vocabulary) in (1_usize..20, 1_usize..5, 2_usize..40),
        (expand, states, taps, rank) in (1_usize..3, 1_usize..19, 1_usize..6, 1_usize..5),
        (neighbours, channel, state, linear) in (0_usize..4, any::<bool>(), any::<bool>(), any::<bool>()),
        (bias, conv_bias, tied, reduction, seed) in (any::<bool>(), any::<bool>(), any::<bool>(), 1_usize..8, any::<u64>()),
    ) -> Small {
        let d = expand * hidden;
        let gates: Vec<&str> =
            [("channel", channel), ("state", state)].into_iter().filter_map(|(gate, there)| there.then_some(gate)).collect();
        let config = json!({
            "model_type": "dense_mamba", "vocab_size": vocabulary, "hidden_size": hidden, "num_hidden_layers": layers,
            "state_size": states, "conv_kernel": taps, "expand": expand, "intermediate_size": d, "time_step_rank": rank,
            "use_bias": bias, "use_conv_bias": conv_bias, "layer_norm_epsilon": 1e-5, "tie_word_embeddings": tied,
            "dense_block_layers": neighbours, "dense_gate": gates, "dense_gate_reduction": reduction,
            "dense_projection": if linear { "linear" } else { "identity" },
        });
        let mut tensors = vec![
            ("backbone.embeddings.weight".to_owned(), vec![vocabulary, hidden]),
            ("backbone.norm_f.weight".to_owned(), vec![hidden]),
        ];
        if !tied {
            tensors.push(("lm_head.weight".to_owned(), vec![vocabulary, hidden]));
        }
        let middle = (hidden / reduction).max(1);
        for l in 0..layers {
            tensors.push((format!("backbone.layers.{l}.norm.weight"), vec![hidden]));
            let mut add = |name: &str, shape: &[usize]| {
                tensors.push((format!("backbone.layers.{l}.mixer.{name}"), shape.to_vec()));
            };
            add("in_proj.weight", &[2 * d, hidden]);
            add("conv1d.weight", &[d, 1, taps]);
            add("x_proj.weight", &[rank + 2 * states, d]);
            add("dt_proj.weight", &[d, rank]);
            add("dt_proj.bias", &[d]);
            add("A_log", &[d, states]);
            add("D", &[d]);
            add("out_proj.weight", &[hidden, d]);
            if bias {
                add("in_proj.bias", &[2 * d]);
                add("out_proj.bias", &[hidden]);
            }
            if conv_bias {
                add("conv1d.bias", &[d]);
            }
            if l > 0 && neighbours > 0 {
                for (gate, width) in [("channel", d), ("state", states)].into_iter().filter(|(gate, _)| gates.contains(gate)) {
                    add(&format!("dense.{gate}_gate.fc1.weight"), &[middle, hidden]);
                    add(&format!("dense.{gate}_gate.fc2.weight"), &[width, middle]);
                }
                for i in (0..neighbours.min(l)).filter(|_| linear) {
                    add(&format!("dense.projections.{i}.weight"), &[states, states]);
                }
            }
        }
        Small { config, tensors, seed }
    }
}

prop_compose! {
    fn falcon()(mamba in mamba(), exponent in 1_i32..7) -> Small {
        let Small { mut config, mut tensors, seed } = mamba;
        config["model_type"] = json!("falcon_mamba");
        config["mixer_rms_eps"] = json!(10_f64.powi(-exponent));
        tensors.retain(|(name, _)| !name.contains(".dense."));
        Small { config, tensors, seed }
    }
}

prop_compose! {
    fn retnet()(
        (hidden, layers, vocabulary, heads) in (1_usize..7, 1_usize..5, 2_usize..40, 1_usize..5),
        (pairs, factor, neighbours) in (1_usize..6, 1_usize..4, 0_usize..4),
        (k_gate, v_gate, tied, seed) in (1_usize..5, 1_usize..5, any::<bool>(), any::<u64>()),
    ) -> Small {
        // Heads divide the values; gates' widths come from the tensors.
        let hidden = hidden * heads * 4;
        let (keys, values) = (2 * pairs * heads, factor * hidden);
        let config = json!({
            "model_type": "llama", "vocab_size": vocabulary, "hidden_size": hidden, "num_hidden_layers": layers,
            "num_attention_heads": heads, "query_key_dim": keys, "v_factor": factor, "rms_norm_eps": 1e-6,
            "tie_word_embeddings": tied, "dense_block_layers": neighbours, "deepnorm": false,
        });
        let mut tensors = vec![
            ("model.embed_tokens.weight".to_owned(), vec![vocabulary, hidden]),
            ("model.norm.weight".to_owned(), vec![hidden]),
        ];
        if !tied {
            tensors.push(("lm_head.weight".to_owned(), vec![vocabulary, hidden]));
        }
        for l in 0..layers {
            tensors.push((format!("model.layers.{l}.input_layernorm.weight"), vec![hidden]));
            for (name, shape) in [
                ("q_proj", vec![keys, hidden]),
                ("k_proj", vec![keys, hidden]),
                ("to_hidden.0", vec![2 * values, hidden]),
                ("to_out.0", vec![hidden, values]),
                ("group_norm", vec![values / heads]),
                ("k_select.fc1", vec![k_gate, hidden]),
                ("k_select.fc2", vec![keys, k_gate]),
                ("v_select.fc1", vec![v_gate, hidden]),
                ("v_select.fc2", vec![values, v_gate]),
                ("k_norm", vec![keys]),
                ("v_norm", vec![values]),
            ] {
                tensors.push((format!("model.layers.{l}.self_attn.{name}.weight"), shape));
            }
        }
        Small { config, tensors, seed }
    }
}

impl Small {
    fn write(&self, folder: &Path) {
        fs::write(folder.join("config.json"), self.config.to_string()).unwrap();
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        let data: Vec<(String, Vec<usize>, Vec<u8>)> = self
            .tensors
            .iter()
            .map(|(name, shape)| {
                let elements: usize = shape.iter().product();
                let fan_in = if shape.len() > 1 { shape[1..].iter().product() } else { 1 };
                let (middle, scale) = match name.as_str() {
                    _ if name.contains("norm") || name.ends_with(".D") => (1.0, 0.3),
                    _ if shape.len() == 1 || name.ends_with("A_log") => (0.0, 1.0),
                    _ => (0.0, 1.7 / (fan_in as f32).sqrt()),
                };
                let values = (0..elements).map(|_| middle + scale * (2.0 * random.random::<f32>() - 1.0));
                (name.clone(), shape.clone(), values.flat_map(f32::to_le_bytes).collect())
            })
            .collect();
        let views = data
            .iter()
            .map(|(name, shape, bytes)| (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
        safetensors::serialize_to_file(views, None, &folder.join("model.safetensors")).unwrap();
    }

    fn agrees(&self) -> Result<(), TestCaseError> {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("model");
        fs::create_dir(&model).unwrap();
        self.write(&model);
        let checkpoint = Checkpoint::open(&model).unwrap();
        let reference = parity::reference(&checkpoint).unwrap();
        for lowering in LOWERINGS {
            let out = folder.path().join(lowering.to_string());
            let options = ExportOptions::default().with_lowering(lowering);
            export(&checkpoint, &out, &options, |_| ControlFlow::Continue(())).unwrap();
            let tokens = (0..21).map(|i| (i * 13 + 1) % reference.vocabulary() as i64).collect();
            let mut plan = parity::ParityOptions::new(tokens);
            plan.new_tokens = 3;
            plan.by_layer = true;
            plan.runtimes = RUNTIMES.to_vec();
            plan.threads = Some(1);
            let bundle = Bundle::open(&out).unwrap();
            let checked = parity::check(&bundle, &reference, &plan, &mut |_| ControlFlow::Continue(())).unwrap();
            prop_assert!(checked.passed, "{lowering}: {}\n{}", self.config, checked.report().unwrap().text(200));
        }
        Ok(())
    }
}

fn all_agree(family: impl Strategy<Value = Small>) {
    // The same models in every run, so that a failure can be reproduced.
    let config = ProptestConfig { cases: CASES, failure_persistence: None, ..ProptestConfig::default() };
    let mut runner = TestRunner::new_with_rng(
        config,
        proptest::test_runner::TestRng::deterministic_rng(proptest::test_runner::RngAlgorithm::ChaCha),
    );
    runner.run(&family, |small| small.agrees()).unwrap();
}

#[test]
fn random_mambas_agree_with_the_reference() {
    all_agree(mamba());
}

#[test]
fn random_falcon_mambas_agree_with_the_reference() {
    all_agree(falcon());
}

#[test]
fn random_retnets_agree_with_the_reference() {
    all_agree(retnet());
}
