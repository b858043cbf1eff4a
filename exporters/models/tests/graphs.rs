//! The graphs as text, for reading and for diffs; and that every configuration has one.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use densessm_graph::{Model, TensorType};
use densessm_models::{GraphOptions, graph};
use densessm_proto::{
    Architecture, DType, DenseMamba, DenseRetNet, FalconMamba, GraphKind, LogitsMode, Lowering, Precision, Projection,
};
use std::path::PathBuf;

const KINDS: [GraphKind; 2] = [GraphKind::Parallel, GraphKind::Recurrent];

fn mamba() -> DenseMamba {
    DenseMamba {
        vocab_size: 11,
        hidden_size: 6,
        num_hidden_layers: 2,
        intermediate_size: 12,
        state_size: 3,
        conv_kernel: 4,
        time_step_rank: 2,
        use_bias: false,
        use_conv_bias: true,
        layer_norm_epsilon: 1e-5,
        tie_word_embeddings: true,
        dense_block_layers: 1,
        channel_gate: Some(1),
        state_gate: Some(1),
        dense_projection: Projection::Identity,
    }
}

fn retnet() -> DenseRetNet {
    DenseRetNet {
        vocab_size: 11,
        hidden_size: 8,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        query_key_dim: 8,
        value_dim: 16,
        k_gate: 1,
        v_gate: 2,
        rms_norm_eps: 1e-6,
        tie_word_embeddings: false,
        dense_block_layers: 1,
    }
}

fn falcon() -> FalconMamba {
    FalconMamba {
        vocab_size: 11,
        hidden_size: 6,
        num_hidden_layers: 2,
        intermediate_size: 12,
        state_size: 3,
        conv_kernel: 4,
        time_step_rank: 2,
        use_bias: false,
        use_conv_bias: true,
        layer_norm_epsilon: 1e-5,
        mixer_rms_eps: 1e-6,
        tie_word_embeddings: true,
    }
}

/// Run with `BLESS=1` to write the texts anew, then read the diff.
#[test]
fn the_graphs_read_as_they_did() {
    for (name, architecture) in [
        ("dense_mamba", Architecture::DenseMamba(mamba())),
        ("dense_retnet", Architecture::DenseRetNet(retnet())),
        ("falcon_mamba", Architecture::FalconMamba(falcon())),
    ] {
        for kind in KINDS {
            let text = graph(&architecture, kind, GraphOptions::default()).unwrap().to_string();
            let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/text/{name}.{kind}.txt"));
            if std::env::var_os("BLESS").is_some() {
                std::fs::write(&path, &text).unwrap();
            }
            let golden = std::fs::read_to_string(&path).unwrap();
            for (line, (got, expected)) in text.lines().zip(golden.lines()).enumerate() {
                assert_eq!(got, expected, "{}, line {}", path.display(), line + 1);
            }
            assert_eq!(text.lines().count(), golden.lines().count(), "{}", path.display());
        }
    }
}

/// Both graphs of a configuration, in every form: they declare the same weights and no shape is at odds.
fn stands(architecture: &Architecture) {
    for lowering in [Lowering::Function, Lowering::Inline] {
        for logits in [LogitsMode::Last, LogitsMode::All] {
            let weights = KINDS.map(|kind| {
                let model =
                    graph(architecture, kind, GraphOptions::default().with_lowering(lowering).with_logits(logits))
                        .unwrap_or_else(|error| panic!("{architecture:?}, {kind}, {lowering}: {error}"));
                let mut weights: Vec<_> = model.weights().cloned().collect();
                weights.sort_by(|a, b| a.name.cmp(&b.name));
                weights
            });
            assert_eq!(weights[0], weights[1], "{architecture:?}");
        }
    }
    stands_in_half_precision(architecture, Lowering::Function, DType::F16);
    stands_in_half_precision(architecture, Lowering::Inline, DType::BF16);
}

/// The graphs over matrices in half precision: with either type of activations they declare the same weights, of which
/// those are in half precision that the contract says, and they have the same inputs and outputs as the fp32 graph.
fn stands_in_half_precision(architecture: &Architecture, lowering: Lowering, half: DType) {
    let options = GraphOptions::default().with_lowering(lowering);
    for kind in KINDS {
        let what = format!("{architecture:?}, {kind}, {lowering}, {half}");
        let io = |model: &Model| {
            let of = |(name, tensor): (&str, &TensorType)| (name.to_owned(), tensor.clone());
            (model.inputs().map(of).collect::<Vec<_>>(), model.outputs().map(of).collect::<Vec<_>>())
        };
        let fp32 = graph(architecture, kind, options).unwrap();
        let mut weights = Vec::new();
        for activations in [DType::F32, half] {
            let options = options.with_matrices(half).with_activations(activations);
            let model = graph(architecture, kind, options).unwrap_or_else(|error| panic!("{what}: {error}"));
            assert_eq!(io(&model), io(&fp32), "{what}");
            for weight in model.weights() {
                let part = &weight.parts[0];
                let expected = if Precision::stores(&part.name, part.shape.len()) { half } else { DType::F32 };
                assert_eq!(weight.initializers[0].dtype, expected, "{what}: {}", weight.name);
            }
            weights.push(model.weights().cloned().collect::<Vec<_>>());
            // Without the operators' bodies, which compute in fp32, every product is one with a weight.
            if lowering == Lowering::Function {
                let text = model.to_string();
                let main = text.split("\nfunction ").next().unwrap();
                for line in main.lines().filter(|line| line.contains(" = MatMul(")) {
                    assert!(line.contains(&format!(": {activations}[")), "{what}: expected {activations}: {line}");
                }
            }
        }
        assert_eq!(weights[0], weights[1], "{what}");
    }
}

#[test]
fn every_configuration_of_dense_mamba_has_its_graphs() {
    for layers in [1, 2, 5] {
        for neighbours in [0, 1, 2, 3, 9] {
            for (channel_gate, state_gate) in [(None, None), (Some(1), None), (None, Some(2)), (Some(3), Some(1))] {
                for dense_projection in [Projection::Identity, Projection::Linear] {
                    for conv_kernel in [1, 2, 5] {
                        stands(&Architecture::DenseMamba(DenseMamba {
                            num_hidden_layers: layers,
                            dense_block_layers: neighbours,
                            channel_gate,
                            state_gate,
                            dense_projection,
                            conv_kernel,
                            use_bias: conv_kernel == 2,
                            use_conv_bias: conv_kernel != 5,
                            tie_word_embeddings: layers == 2,
                            state_size: layers,
                            ..mamba()
                        }));
                    }
                }
            }
        }
    }
}

#[test]
fn every_configuration_of_dense_retnet_has_its_graphs() {
    for layers in [1, 2, 4] {
        for neighbours in [0, 1, 2, 9] {
            for heads in [1, 2, 4] {
                for head_key_dim in [2, 4, 10] {
                    stands(&Architecture::DenseRetNet(DenseRetNet {
                        num_hidden_layers: layers,
                        dense_block_layers: neighbours,
                        num_attention_heads: heads,
                        query_key_dim: heads * head_key_dim,
                        tie_word_embeddings: heads == 2,
                        ..retnet()
                    }));
                }
            }
        }
    }
}

#[test]
fn every_configuration_of_falcon_mamba_has_its_graphs() {
    for layers in [1, 3] {
        for (use_bias, use_conv_bias) in [(false, false), (true, false), (false, true), (true, true)] {
            for (conv_kernel, state_size, time_step_rank) in [(1, 1, 1), (2, 3, 3), (5, 4, 2)] {
                stands(&Architecture::FalconMamba(FalconMamba {
                    num_hidden_layers: layers,
                    use_bias,
                    use_conv_bias,
                    conv_kernel,
                    state_size,
                    time_step_rank,
                    tie_word_embeddings: layers == 1,
                    ..falcon()
                }));
            }
        }
    }
}
