//! config.json → [`Spec`]: defaults, old and new forms, rotations. Expected numbers are transformers' (5.23).

use super::*;

fn spec(config: Value) -> Spec {
    read(&config).unwrap().0
}

fn rope(config: Value) -> Rope {
    match spec(config).positions {
        Positions::Rope(rope) => rope,
        learned => panic!("{learned:?}"),
    }
}

fn refusal(config: Value) -> String {
    read(&config).unwrap_err().to_string()
}

#[test]
fn absent_fields_have_the_defaults_of_their_type() {
    let sizes = |model_type: &str| {
        let Spec { vocab, width, layers, heads, kv_heads, head_dim, ffn, context, norm_eps, .. } =
            spec(json!({"model_type": model_type}));
        ([vocab, width, layers, heads, kv_heads, head_dim, ffn, context], norm_eps)
    };
    assert_eq!(sizes("gpt2"), ([50257, 768, 12, 12, 12, 64, 3072, 1024], 1e-5));
    assert_eq!(sizes("opt"), ([50272, 768, 12, 12, 12, 64, 3072, 2048], 1e-5));
    assert_eq!(sizes("llama"), ([32000, 4096, 32, 32, 32, 128, 11008, 2048], 1e-6));
    assert_eq!(sizes("mistral"), ([32000, 4096, 32, 32, 8, 128, 14336, 131072], 1e-6));
    assert_eq!(sizes("qwen2"), ([151936, 4096, 32, 32, 32, 128, 22016, 32768], 1e-6));
    assert_eq!(sizes("qwen3"), ([151936, 4096, 32, 32, 32, 128, 22016, 32768], 1e-6));
    assert_eq!(sizes("phi3"), ([32064, 3072, 32, 32, 32, 96, 8192, 4096], 1e-5));
    assert_eq!(sizes("llava"), sizes("llama"));
}

#[test]
fn ids_come_from_the_best_place() {
    let ids = |config| {
        let spec = spec(config);
        (spec.bos, spec.eos)
    };
    assert_eq!(ids(json!({"model_type": "gpt2"})), (Some(50256), vec![50256]));
    assert_eq!(ids(json!({"model_type": "phi3"})), (Some(1), vec![32000]));
    assert_eq!(ids(json!({"model_type": "qwen2"})), (None, vec![]));
    assert_eq!(
        ids(json!({"model_type": "llama", "eos_token_id": null, "bos_token_id": null})),
        (None, vec![])
    );
    assert_eq!(ids(json!({"model_type": "llama", "eos_token_id": [5, 9]})), (Some(1), vec![5, 9]));
    let text = json!({"model_type": "llama", "eos_token_id": 7});
    assert_eq!(ids(json!({"model_type": "llava", "text_config": text})), (Some(1), vec![7]));

    let parse = |value: Value| Fields::parse(Path::new("x.json"), value.to_string().as_bytes()).unwrap();
    let config = parse(json!({"model_type": "llama", "eos_token_id": 2}));
    let generation = parse(json!({"eos_token_id": [3, 4, 4_000_000]}));
    assert_eq!(families::read(&config, Some(&generation)).unwrap().0.eos, [3, 4]);
    assert_eq!(families::read(&config, Some(&parse(json!({})))).unwrap().0.eos, [2]);
}

#[test]
fn heads_are_tied_by_default_where_their_family_ties_them() {
    for (model_type, tied) in
        [("gpt2", true), ("opt", true), ("llama", false), ("qwen3", false), ("llava", false)]
    {
        assert_eq!(read(&small(model_type)).unwrap().1.tied, tied, "{model_type}");
    }
    let mut llava = small("llava");
    llava["text_config"]["tie_word_embeddings"] = json!(true);
    assert!(read(&llava).unwrap().1.tied);
}

#[test]
fn windows_follow_the_rules_of_their_family() {
    let window = |model_type: &str, more| spec(with(&small(model_type), more)).window;
    assert_eq!(window("llama", json!({"sliding_window": 8})), [None, None]);
    assert_eq!(window("mistral", json!({})), [Some(4096), Some(4096)]);
    assert_eq!(window("mistral", json!({"sliding_window": null})), [None, None]);
    assert_eq!(window("phi3", json!({})), [None, None]);
    assert_eq!(window("phi3", json!({"sliding_window": 7})), [Some(7), Some(7)]);
    let slides = json!({"use_sliding_window": true, "sliding_window": 8, "max_window_layers": 1});
    assert_eq!(window("qwen2", slides.clone()), [None, Some(8)]);
    assert_eq!(window("qwen3", with(&slides, json!({"use_sliding_window": false}))), [None, None]);
    let types = json!({"layer_types": ["sliding_attention", "full_attention"]});
    assert_eq!(window("qwen2", with(&slides, types.clone())), [Some(8), None]);
    assert!(refusal(with(&small("qwen2"), types)).contains("layer_types"));
    assert!(refusal(with(&small("qwen2"), json!({"layer_types": ["full_attention"]}))).contains("2 layers"));
}

#[test]
fn attention_is_scaled_as_the_config_says() {
    let scale = |more| spec(with(&small("gpt2"), more)).attention_scale;
    let usual = 2f64.powf(-0.5) as f32;
    assert_eq!(scale(json!({})), [usual, usual]);
    assert_eq!(scale(json!({"scale_attn_weights": false})), [1.0, 1.0]);
    assert_eq!(scale(json!({"scale_attn_by_inverse_layer_idx": true})), [usual, usual / 2.0]);
    assert_eq!(spec(small("llama")).attention_scale, [0.5, 0.5]);
}

/// Two heads of 10 elements, 256 positions.
fn rotated(parameters: Value) -> Value {
    json!({"model_type": "llama", "hidden_size": 20, "num_attention_heads": 2, "max_position_embeddings": 256,
        "rope_parameters": parameters})
}

#[test]
fn frequencies_are_those_of_transformers() {
    let default = vec![1.0, 0.15848932, 0.025118863, 0.0039810706, 0.0006309573];
    assert_eq!(rope(rotated(json!({}))).inv_freq, default);
    assert_eq!(rope(rotated(json!({"rope_type": "dynamic", "factor": 2.0}))).inv_freq, default);
    let linear = rope(rotated(json!({"rope_type": "linear", "factor": 4.0})));
    assert_eq!(linear.inv_freq, [0.25, 0.03962233, 0.006279716, 0.0009952676, 0.00015773933]);
    let llama3 = rope(rotated(json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 64})));
    assert_eq!(llama3.inv_freq, [1.0, 0.048210546, 0.003139858, 0.0004976338, 0.00007886966]);
    let yarn =
        rope(rotated(json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64})));
    assert_eq!(yarn.inv_freq, [1.0, 0.09905583, 0.006279716, 0.0009952676, 0.00015773933]);
    assert_eq!((yarn.attention_factor, yarn.rotary_dim), (1.1386294, 10));
}

#[test]
fn longrope_has_two_sets() {
    let factors = json!({"short_factor": [1.0, 1.1, 1.3, 1.7, 2.5], "long_factor": [1.5, 2.5, 4.0, 8.0, 16.0],
        "type": "longrope", "original_max_position_embeddings": 64});
    let expected = Rope {
        rotary_dim: 10,
        inv_freq: vec![1.0, 0.14408119, 0.019322203, 0.0023418062, 0.00025238292],
        long: Some(LongRope {
            inv_freq: vec![0.6666667, 0.06339572, 0.006279716, 0.0004976338, 0.00003943483],
            original_context: 64,
        }),
        attention_factor: 1.1547005,
    };
    assert_eq!(rope(rotated(factors.clone())), expected);

    // Phi-3 called it su and yarn, and has the original context beside the parameters, or 4096.
    let phi3 = |more| with(&with(&rotated(json!(null)), json!({"model_type": "phi3"})), more);
    for name in ["su", "yarn", "longrope"] {
        let old = with(&factors, json!({"type": name, "original_max_position_embeddings": 5}));
        assert_eq!(
            rope(phi3(json!({"rope_scaling": old, "original_max_position_embeddings": 64}))),
            expected
        );
    }
    let unnamed = rope(phi3(json!({"rope_scaling": factors})));
    assert_eq!(unnamed.long.unwrap().original_context, 4096);
    assert_eq!(unnamed.attention_factor, 1.0);
    let linear = json!({"type": "linear", "factor": 2.0});
    assert!(refusal(phi3(json!({"rope_scaling": linear}))).contains("longrope"));
}

#[test]
fn only_phi3_rotates_a_part() {
    let part = json!({"model_type": "phi3", "partial_rotary_factor": 0.5});
    let rope_of = |more| rope(with(&rotated(json!({})), more));
    // int(10 × 0.5) is odd: three frequencies spread over five elements, six elements rotated.
    let phi3 = rope_of(part);
    assert_eq!((phi3.rotary_dim, phi3.inv_freq), (6, vec![1.0, 0.025118863, 0.0006309573]));
    assert_eq!(rope_of(json!({"partial_rotary_factor": 0.5})).rotary_dim, 10);
}

#[test]
fn old_and_new_forms_mean_the_same() {
    let base = json!({"model_type": "llama", "hidden_size": 20, "num_attention_heads": 2});
    let old = json!({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2}});
    let new =
        json!({"rope_parameters": {"rope_type": "linear", "type": "linear", "factor": 2, "rope_theta": 5e5}});
    assert_eq!(rope(with(&base, old)), rope(with(&base, new)));
    let plain = json!({"rope_theta": 5e5, "rope_scaling": null});
    assert_eq!(rope(with(&base, plain)), rope(with(&base, json!({"rope_parameters": {"rope_theta": 5e5}}))));
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    for (more, named) in [
        (json!({"model_type": "bert"}), "phi3"),
        (json!({"model_type": null}), "accepted: gpt2"),
        (json!({"hidden_act": "quick_gelu"}), "quick_gelu"),
        (json!({"rope_scaling": {"type": "mrope"}}), "mrope"),
        (json!({"rope_parameters": {"full_attention": {"rope_type": "default"}}}), "full_attention"),
        (json!({"rope_scaling": {"type": "linear"}}), "factor"),
    ] {
        let message = refusal(with(&small("llama"), more));
        assert!(message.starts_with("config.json: ") && message.contains(named), "{message}");
    }
    assert!(refusal(json!({"model_type": "llava", "text_config": {"model_type": "gpt2"}})).contains("qwen3"));
}

#[test]
fn gpt2_knows_the_names_of_others_which_win() {
    let sizes = |config: Value| {
        let Spec { width, heads, layers, context, .. } = spec(config);
        [width, heads, layers, context]
    };
    let own = json!({"model_type": "gpt2", "n_embd": 24, "n_head": 6, "n_layer": 2, "n_positions": 64});
    assert_eq!(sizes(own.clone()), [24, 6, 2, 64]);
    let usual = [
        ("hidden_size", 48),
        ("num_attention_heads", 3),
        ("num_hidden_layers", 1),
        ("max_position_embeddings", 32),
    ];
    for (at, (name, value)) in usual.into_iter().enumerate() {
        let mut expected = [24, 6, 2, 64];
        expected[at] = value;
        let mut config = own.clone();
        config[name] = json!(value);
        assert_eq!(sizes(config), expected, "{name}");
    }
}

#[test]
fn a_mistral_with_a_list_of_layers_is_a_ministral() {
    let windows = |types: Value| {
        spec(json!({
            "model_type": "mistral", "num_hidden_layers": 3, "sliding_window": 5, "layer_types": types
        }))
        .window
    };
    assert_eq!(windows(Value::Null), [Some(5); 3]);
    let mixed = json!(["sliding_attention", "full_attention", "sliding_attention"]);
    assert_eq!(windows(mixed), [Some(5), None, Some(5)]);
}

#[test]
fn what_changes_results_and_is_not_there_is_refused() {
    for model_type in ["gpt2", "opt", "llama", "qwen3", "phi3"] {
        let error = refusal(json!({"model_type": model_type, "is_causal": false}));
        assert!(error.contains("is_causal"), "{error}");
        spec(json!({"model_type": model_type, "is_causal": true, "per_layer_config": {}}));
    }
    let text = json!({"model_type": "llama", "is_causal": false});
    assert!(refusal(json!({"model_type": "llava", "text_config": text})).contains("text_config.is_causal"));
    let error = refusal(json!({"model_type": "llama", "per_layer_config": {"0": {"hidden_act": "relu"}}}));
    assert!(error.contains("per_layer_config"), "{error}");
}
