//! Both graphs of every configuration hold the values that `densessm_proto::probes` lists, in the layouts it states.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use densessm_models::{GraphOptions, graph};
use densessm_proto::{
    Architecture, DenseMamba, DenseRetNet, FalconMamba, GraphKind, LogitsMode, Lowering, Precision, ProbeLayout,
    Projection, probes,
};
use std::collections::BTreeMap;

/// Values of a graph's main body and their types, from its text: the lines before the first function.
fn values(text: &str) -> BTreeMap<&str, &str> {
    let main = text.split("\nfunction ").next().unwrap();
    let nodes = main.lines().filter_map(|line| line.trim().split_once(" = "));
    nodes.flat_map(|(results, _)| split_results(results)).collect()
}

/// The parts of `a: fp32[batch, 1], b: fp32[batch]`.
fn split_results(results: &str) -> impl Iterator<Item = (&str, &str)> {
    results.split_inclusive(']').filter_map(|result| result.trim_start_matches(", ").split_once(": "))
}

fn holds_its_probes(architecture: &Architecture) {
    for kind in [GraphKind::Parallel, GraphKind::Recurrent] {
        for lowering in [Lowering::Function, Lowering::Inline] {
            for (logits, precision) in [
                (LogitsMode::Last, Precision::Fp32),
                (LogitsMode::All, Precision::Fp32),
                (LogitsMode::Last, Precision::Fp16),
            ] {
                let options = GraphOptions::default()
                    .with_lowering(lowering)
                    .with_logits(logits)
                    .with_matrices(precision.matrices());
                let text = graph(architecture, kind, options).unwrap().to_string();
                let values = values(&text);
                let time = if kind == GraphKind::Parallel { "sequence" } else { "1" };
                for probe in probes(architecture, kind, lowering, precision) {
                    let what = format!("{architecture:?}, {kind}, {lowering}, {precision}, {logits:?}: {probe:?}");
                    let found = values.get(probe.value.as_str());
                    let got = found.unwrap_or_else(|| panic!("{what}: no such value in\n{text}"));
                    match &probe.layout {
                        ProbeLayout::Tokens { width } => {
                            assert_eq!(*got, format!("fp32[batch, {time}, {width}]"), "{what}")
                        }
                        ProbeLayout::Positions { width } => {
                            assert!(
                                got.starts_with("fp32[batch") && got.ends_with(&format!(", {width}]")),
                                "{what}: {got}"
                            );
                        }
                        ProbeLayout::State { shape } => {
                            let sizes: Vec<String> = shape.iter().map(ToString::to_string).collect();
                            assert_eq!(*got, format!("fp32[batch, {}]", sizes.join(", ")), "{what}");
                        }
                        other => panic!("{what}: a layout without a check: {other:?}"),
                    }
                }
            }
        }
    }
}

#[test]
fn graphs_of_dense_mamba_hold_their_probes() {
    for (neighbours, gates) in [(0, [true, true]), (1, [true, false]), (2, [false, true]), (9, [false, false])] {
        for conv_kernel in [1, 4] {
            for (use_bias, dense_projection) in [(false, Projection::Identity), (true, Projection::Linear)] {
                holds_its_probes(&Architecture::DenseMamba(DenseMamba {
                    vocab_size: 11,
                    hidden_size: 6,
                    num_hidden_layers: 3,
                    intermediate_size: 12,
                    state_size: 3,
                    conv_kernel,
                    time_step_rank: 2,
                    use_bias,
                    use_conv_bias: !use_bias,
                    layer_norm_epsilon: 1e-5,
                    tie_word_embeddings: use_bias,
                    dense_block_layers: neighbours,
                    channel_gate: gates[0].then_some(1),
                    state_gate: gates[1].then_some(2),
                    dense_projection,
                }));
            }
        }
    }
}

#[test]
fn graphs_of_dense_retnet_hold_their_probes() {
    for neighbours in [0, 1, 2, 9] {
        for heads in [1, 2] {
            holds_its_probes(&Architecture::DenseRetNet(DenseRetNet {
                vocab_size: 11,
                hidden_size: 8,
                num_hidden_layers: 3,
                num_attention_heads: heads,
                query_key_dim: 12,
                value_dim: 16,
                k_gate: 1,
                v_gate: 2,
                rms_norm_eps: 1e-6,
                tie_word_embeddings: heads == 1,
                dense_block_layers: neighbours,
            }));
        }
    }
}

#[test]
fn graphs_of_falcon_mamba_hold_their_probes() {
    for conv_kernel in [1, 4] {
        for use_bias in [false, true] {
            holds_its_probes(&Architecture::FalconMamba(FalconMamba {
                vocab_size: 11,
                hidden_size: 6,
                num_hidden_layers: 2,
                intermediate_size: 12,
                state_size: 3,
                conv_kernel,
                time_step_rank: 2,
                use_bias,
                use_conv_bias: !use_bias,
                layer_norm_epsilon: 1e-5,
                mixer_rms_eps: 1e-6,
                tie_word_embeddings: use_bias,
            }));
        }
    }
}
