//! `config.json`: defaults, the two layouts of DenseRetNet, and nonsense, field by field.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use densessm_checkpoint::{Error, config};
use densessm_proto::{Architecture, DenseMamba, DenseRetNet, FalconMamba, Projection};
use serde_json::{Value, json};

fn parse(config: &Value) -> Result<Architecture, Error> {
    config::parse(config, &|_| None)
}

fn mamba(config: &Value) -> DenseMamba {
    match parse(config).unwrap() {
        Architecture::DenseMamba(mamba) => mamba,
        other => panic!("{other:?}"),
    }
}

fn retnet<'a>(config: &Value, shape: &dyn Fn(&str) -> Option<&'a [usize]>) -> Result<DenseRetNet, Error> {
    match config::parse(config, shape)? {
        Architecture::DenseRetNet(retnet) => Ok(retnet),
        other => panic!("{other:?}"),
    }
}

fn with(base: Value, fields: &Value) -> Value {
    let mut config = base;
    for (name, value) in fields.as_object().unwrap() {
        config[name] = value.clone();
    }
    config
}

fn dense_mamba() -> Value {
    json!({"model_type": "dense_mamba", "vocab_size": 96, "hidden_size": 72, "num_hidden_layers": 3})
}

/// As the reference repository writes it.
fn dense_retnet() -> Value {
    json!({
        "model_type": "llama", "vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2,
        "query_key_dim": 32, "v_factor": 2, "dense_block_layers": 1, "hidden_act": "silu", "retnorm": false,
        "deepnorm": false,
    })
}

#[test]
fn what_a_dense_mamba_leaves_out_has_its_default() {
    let expected = DenseMamba {
        vocab_size: 96,
        hidden_size: 72,
        num_hidden_layers: 3,
        intermediate_size: 144,
        state_size: 16,
        conv_kernel: 4,
        time_step_rank: 5,
        use_bias: false,
        use_conv_bias: true,
        layer_norm_epsilon: 1e-5,
        tie_word_embeddings: true,
        dense_block_layers: 2,
        channel_gate: Some(4),
        state_gate: Some(4),
        dense_projection: Projection::Identity,
    };
    assert_eq!(mamba(&dense_mamba()), expected);
    assert_eq!(mamba(&with(dense_mamba(), &json!({"time_step_rank": "auto", "intermediate_size": 144}))), expected);
    let plain = mamba(&with(dense_mamba(), &json!({"model_type": "mamba", "dense_block_layers": 2})));
    let without = DenseMamba { dense_block_layers: 0, channel_gate: None, state_gate: None, ..expected };
    assert_eq!(plain, without);
}

/// What a Falcon-Mamba's configuration must state.
fn falcon_mamba() -> Value {
    json!({"model_type": "falcon_mamba", "vocab_size": 96, "hidden_size": 72, "num_hidden_layers": 3})
}

#[test]
fn what_a_falcon_mamba_leaves_out_has_its_default() {
    let expected = FalconMamba {
        vocab_size: 96,
        hidden_size: 72,
        num_hidden_layers: 3,
        intermediate_size: 144,
        state_size: 16,
        conv_kernel: 4,
        time_step_rank: 5,
        use_bias: false,
        use_conv_bias: true,
        layer_norm_epsilon: 1e-5,
        mixer_rms_eps: 1e-6,
        tie_word_embeddings: true,
    };
    assert_eq!(parse(&falcon_mamba()).unwrap(), Architecture::FalconMamba(expected.clone()));
    let stated = json!({
        "use_bias": true, "use_conv_bias": false, "mixer_rms_eps": 1e-3, "layer_norm_epsilon": 1e-4,
        "tie_word_embeddings": false, "time_step_rank": 7, "state_size": 8, "conv_kernel": 3, "expand": 3,
        // How Transformers computes or initialises it, not what it computes; dense connections are another family's.
        "use_falcon_mambapy": true, "use_mambapy": true, "rescale_prenorm_residual": true, "residual_in_fp32": false,
        "dense_block_layers": 2,
    });
    let expected = FalconMamba {
        intermediate_size: 216,
        state_size: 8,
        conv_kernel: 3,
        time_step_rank: 7,
        use_bias: true,
        use_conv_bias: false,
        layer_norm_epsilon: 1e-4,
        mixer_rms_eps: 1e-3,
        tie_word_embeddings: false,
        ..expected
    };
    assert_eq!(parse(&with(falcon_mamba(), &stated)).unwrap(), Architecture::FalconMamba(expected));
}

#[test]
fn a_falcon_mamba_refuses_nonsense_in_its_own_fields() {
    let cases = [
        ("mixer_rms_eps", json!(0), "a small positive number"),
        ("mixer_rms_eps", json!("1e-6"), "a small positive number"),
        ("hidden_act", json!("gelu"), "\"silu\""),
        ("use_falcon_mambapy", json!("no"), "true or false"),
        ("rescale_prenorm_residual", json!(1), "true or false"),
        ("intermediate_size", json!(100), "expand · hidden_size = 144"),
        ("time_step_rank", json!("many"), "a whole number"),
    ];
    for (field, value, expected) in cases {
        let error = parse(&with(falcon_mamba(), &json!({field: value, "expand": 2}))).unwrap_err().to_string();
        assert!(error.starts_with(&format!("config.json: {field}: expected {expected}")), "{error}");
    }
}

#[test]
fn a_dense_mamba_says_which_gates_it_has_and_how_wide_they_are() {
    let gates = |fields: Value| {
        let mamba = mamba(&with(dense_mamba(), &fields));
        (mamba.channel_gate, mamba.state_gate)
    };
    assert_eq!(gates(json!({"dense_gate": ["state"], "dense_gate_reduction": 10})), (None, Some(7)));
    assert_eq!(gates(json!({"dense_gate": ["channel"], "dense_gate_reduction": 1000})), (Some(1), None));
    assert_eq!(gates(json!({"dense_gate": []})), (None, None));
    assert_eq!(gates(json!({"dense_block_layers": 0})), (None, None));
    let linear = mamba(&with(dense_mamba(), &json!({"dense_projection": "linear", "dense_block_layers": 1000})));
    assert_eq!((linear.dense_projection, linear.dense_block_layers), (Projection::Linear, 1000));
}

#[test]
fn a_dense_retnet_is_known_by_its_fields_whatever_its_type_says() {
    for name in [json!("llama"), json!("DenseGauRetNet"), json!("mamba"), Value::Null] {
        let found = retnet(&with(dense_retnet(), &json!({"model_type": name})), &|_| None).unwrap();
        assert_eq!(
            (found.query_key_dim, found.value_dim, found.head_key_dim(), found.head_value_dim()),
            (32, 128, 16, 64)
        );
        assert_eq!((found.k_gate, found.v_gate), (2, 2));
        assert_eq!((found.rms_norm_eps, found.tie_word_embeddings), (1e-6, false));
    }
    let mut tied = dense_retnet();
    tied["tie_word_embeddings"] = json!(true);
    assert!(retnet(&tied, &|_| None).unwrap().tie_word_embeddings);
    let mut half = dense_retnet();
    half.as_object_mut().unwrap().remove("dense_block_layers");
    let error = parse(&half).unwrap_err().to_string();
    assert_eq!(error, "config.json: dense_block_layers: expected a whole number from 0 to 16777216, got nothing");
}

#[test]
fn gates_of_a_dense_retnet_are_as_wide_as_their_tensors() {
    // Those of layer 0 are never used and may be of any width, unless there is no other.
    let layers = |layer: usize| {
        move |name: &str| -> Option<&'static [usize]> {
            match name.strip_prefix(&format!("model.layers.{layer}.self_attn."))? {
                "k_select.fc1.weight" => Some(&[8, 64]),
                "v_select.fc1.weight" => Some(&[4, 64]),
                _ => None,
            }
        }
    };
    let found = retnet(&dense_retnet(), &layers(1)).unwrap();
    assert_eq!((found.k_gate, found.v_gate), (8, 4));
    let found = retnet(&dense_retnet(), &layers(0)).unwrap();
    assert_eq!((found.k_gate, found.v_gate), (2, 2));
    let found = retnet(&with(dense_retnet(), &json!({"num_hidden_layers": 1})), &layers(0)).unwrap();
    assert_eq!((found.k_gate, found.v_gate), (8, 4));

    let stated = json!({"intermediate_k_select_scale": 8, "intermediate_v_select_scale": 16});
    assert!(retnet(&with(dense_retnet(), &stated), &layers(1)).is_ok());
    for (field, wrong) in [("intermediate_k_select_scale", 4), ("intermediate_v_select_scale", 1000)] {
        let error = retnet(&with(dense_retnet(), &json!({field: wrong})), &layers(1)).unwrap_err().to_string();
        assert!(error.starts_with(&format!("config.json: {field}: expected a reduction of hidden_size 64")), "{error}");
        assert!(error.ends_with(&format!("got {wrong}")), "{error}");
    }
    // A shape that is none of a gate's says nothing of its width.
    let shapes: [&[usize]; 4] = [&[0, 64], &[usize::MAX, 64], &[], &[8]];
    for shape in shapes {
        assert_eq!(retnet(&dense_retnet(), &|_| Some(shape)).unwrap().k_gate, 2);
    }
}

#[test]
fn heads_of_two_can_be_rotated_and_odd_ones_cannot() {
    let dims =
        |dim: u64, heads: u64| with(dense_retnet(), &json!({"query_key_dim": dim, "num_attention_heads": heads}));
    assert_eq!(retnet(&dims(8, 4), &|_| None).unwrap().head_key_dim(), 2);
    for (dim, heads, field) in [(6, 2, "query_key_dim"), (32, 3, "num_attention_heads"), (30, 3, "num_attention_heads")]
    {
        let error = retnet(&dims(dim, heads), &|_| None).unwrap_err().to_string();
        assert!(error.starts_with(&format!("config.json: {field}: expected")), "{error}");
    }
}

#[test]
fn every_field_refuses_every_kind_of_nonsense() {
    let nonsense = [
        json!(null),
        json!(-1),
        json!(1.5),
        json!("16"),
        json!([16]),
        json!({}),
        json!(1e300),
        json!(u64::MAX),
        json!(true),
    ];
    let sizes = |names: &[&'static str]| names.to_vec();
    let mamba = sizes(&[
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "state_size",
        "conv_kernel",
        "expand",
        "intermediate_size",
        "time_step_rank",
        "dense_block_layers",
        "dense_gate_reduction",
    ]);
    let retnet = sizes(&[
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "query_key_dim",
        "v_factor",
        "dense_block_layers",
        "intermediate_k_select_scale",
        "intermediate_v_select_scale",
    ]);
    for (base, fields) in [(dense_mamba(), mamba), (dense_retnet(), retnet)] {
        assert!(parse(&base).is_ok());
        for field in fields {
            let zero = (field != "dense_block_layers").then(|| json!(0));
            for value in nonsense.iter().chain(&zero) {
                let error = parse(&with(base.clone(), &json!({field: value}))).unwrap_err().to_string();
                assert!(error.starts_with(&format!("config.json: {field}: expected ")), "{field} {value}: {error}");
            }
        }
    }
    let epsilons = [json!(0), json!(-1e-5), json!(1), json!(1e-60), json!("1e-5"), json!(null)];
    let flags = [json!(0), json!("true"), json!(null)];
    let names = [json!("cubic"), json!(7), json!(null), json!(["channel", "cubic"]), json!([["channel"]])];
    let (m, r) = (with(dense_mamba(), &json!({"expand": 2})), dense_retnet());
    for (base, field, values) in [
        (&m, "layer_norm_epsilon", epsilons.as_slice()),
        (&r, "rms_norm_eps", &epsilons),
        (&m, "use_bias", &flags),
        (&m, "use_conv_bias", &flags),
        (&m, "tie_word_embeddings", &flags),
        (&r, "tie_word_embeddings", &flags),
        (&r, "deepnorm", &flags),
        (&r, "deepnorm", &[json!(true)]),
        (&r, "retnorm", &[json!(true)]),
        (&m, "hidden_act", &names),
        (&r, "hidden_act", &names),
        (&m, "dense_gate", &names),
        (&m, "dense_projection", &names),
        (&m, "model_type", &[json!("mamba2"), json!(null), json!(1)]),
        (&m, "intermediate_size", &[json!(145)]),
        (&m, "num_hidden_layers", &[json!(100_000)]),
        // Each is of reasonable size, their product is not.
        (&m, "expand", &[json!(1 << 20)]),
        (&r, "v_factor", &[json!(1 << 20)]),
    ] {
        for value in values {
            let error = parse(&with(base.clone(), &json!({field: value}))).unwrap_err().to_string();
            assert!(error.starts_with(&format!("config.json: {field}: expected ")), "{field} {value}: {error}");
        }
    }
    for value in [json!([]), json!("mamba"), json!(null)] {
        assert!(parse(&value).unwrap_err().to_string().starts_with("config.json: top level: expected an object"));
    }
}

#[test]
fn fields_that_say_nothing_of_the_dimensions_are_ignored() {
    let more = json!({"use_cache": "yes", "dropout": -3, "torch_dtype": 7, "max_position_embeddings": null});
    assert_eq!(parse(&with(dense_mamba(), &more)).unwrap(), parse(&dense_mamba()).unwrap());
    assert_eq!(parse(&with(dense_retnet(), &more)).unwrap(), parse(&dense_retnet()).unwrap());
}
