//! Damaged, lying and unsuitable adapters: each is answered by one error that names the file and the field.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "clippy allows them in test functions, but not in their helpers"
)]

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Value, json};
use tempfile::TempDir;
use wattle_engine::adapter::Adapter;
use wattle_engine::model::{Activation, Family, NormKind, Positions, Spec};

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
const Q: &str = "base_model.model.model.layers.0.self_attn.q_proj";

/// Two layers of width 12 = 4 heads of 3, 2 of them for keys and values; 7 hidden, 11 tokens.
fn spec(family: Family) -> Spec {
    Spec {
        family,
        vocab: 11,
        width: 12,
        embed_width: 12,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 3,
        ffn: 7,
        context: 64,
        norm: NormKind::Rms,
        norm_eps: 1e-5,
        post_norm: false,
        activation: Activation::Silu,
        positions: Positions::Learned { offset: 0 },
        attention_scale: vec![1.0; 2],
        window: vec![None; 2],
        eos: vec![],
        bos: None,
    }
}

fn config(fields: Value) -> String {
    let mut all =
        json!({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]});
    all.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    all.to_string()
}

fn weights(tensors: &[(&str, &[usize])], dtype: Dtype) -> Vec<u8> {
    let len = |shape: &[usize]| shape.iter().product::<usize>() * dtype.bitsize() / 8;
    let data: Vec<_> = tensors.iter().map(|(_, shape)| vec![0x3c; len(shape)]).collect();
    let views = tensors
        .iter()
        .zip(&data)
        .map(|((name, shape), data)| (name, TensorView::new(dtype, shape.to_vec(), data).unwrap()));
    safetensors::serialize(views, None).unwrap()
}

/// The factors of one q_proj, of rank 2.
fn good() -> Vec<u8> {
    weights(
        &[(&format!("{Q}.lora_A.weight"), &[2, 12]), (&format!("{Q}.lora_B.weight"), &[12, 2])],
        Dtype::F32,
    )
}

fn directory(config: impl AsRef<[u8]>, weights: impl AsRef<[u8]>) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(CONFIG), config).unwrap();
    fs::write(dir.path().join(WEIGHTS), weights).unwrap();
    dir
}

/// The error's message, which must have all of `parts`.
fn refused(dir: &Path, family: Family, parts: &[&str]) {
    let start = Instant::now();
    let message = match Adapter::load(dir, &spec(family)) {
        Ok(_) => panic!("accepted, expected an error with {parts:?}"),
        Err(e) => e.to_string(),
    };
    assert!(start.elapsed() < Duration::from_secs(5), "{:?} for {message}", start.elapsed());
    for part in parts {
        assert!(message.contains(part), "{message:?} lacks {part:?}");
    }
    assert!(message.len() < 1000, "{} bytes: {message}", message.len());
}

fn config_refused(fields: Value, parts: &[&str]) {
    let field = fields.as_object().unwrap().keys().next().unwrap().clone();
    refused(directory(config(fields), good()).path(), Family::Llama, &[&[CONFIG, &field], parts].concat());
}

fn weights_refused(weights: impl AsRef<[u8]>, parts: &[&str]) {
    refused(directory(config(json!({})), weights).path(), Family::Llama, &[&[WEIGHTS], parts].concat());
}

#[test]
fn the_good_one_loads() {
    let dir = directory(config(json!({})), good());
    assert_eq!(Adapter::load(dir.path(), &spec(Family::Llama)).unwrap().rank(), 2);
    for fields in [
        json!({"init_lora_weights": "gaussian", "loftq_config": {}, "eva_config": {"rho": 2.0}, "lora_dropout": 0.1}),
        json!({"velora_config": {"num_groups": 4}, "monteclora_config": {"num_samples": 8}, "fan_in_fan_out": true}),
        json!({"modules_to_save": [], "bias": "none", "use_dora": false, "layer_replication": null}),
        json!({"some_later_option": {"a": 1}, "runtime_config": {}, "task_type": null}),
    ] {
        let dir = directory(config(fields.clone()), good());
        assert!(Adapter::load(dir.path(), &spec(Family::Llama)).is_ok(), "{fields}");
    }
}

#[test]
fn what_is_not_plain_lora_is_refused_by_name() {
    for kind in ["IA3", "LOHA", "PREFIX_TUNING", "ADALORA"] {
        config_refused(json!({"peft_type": kind}), &[kind]);
    }
    config_refused(json!({"use_dora": true}), &["DoRA"]);
    config_refused(json!({"bias": "all"}), &["bias training"]);
    config_refused(json!({"bias": "lora_only"}), &["bias training"]);
    config_refused(json!({"lora_bias": true}), &["bias training"]);
    config_refused(json!({"modules_to_save": ["lm_head"]}), &["modules_to_save"]);
    config_refused(json!({"trainable_token_indices": [1]}), &["token embeddings"]);
    config_refused(json!({"layer_replication": [[0, 1], [0, 2]]}), &["layer replication"]);
    config_refused(json!({"target_parameters": ["mlp.experts"]}), &["LoRA on bare parameters"]);
    config_refused(json!({"use_qalora": true}), &["QA-LoRA"]);
    config_refused(json!({"use_bdlora": {}}), &["BD-LoRA"]);
    config_refused(json!({"arrow_config": {"top_k": 3}}), &["Arrow"]);
    config_refused(json!({"kasa_config": {}}), &["KaSA"]);
    config_refused(json!({"init_lora_weights": "pissa_niter_16"}), &["changes the base's weights"]);
    for (tail, what) in [
        ("lora_magnitude_vector", "DoRA"),
        ("lora_B.bias", "bias training"),
        ("base_layer.bias", "bias training"),
        ("modules_to_save.weight", "modules_to_save"),
    ] {
        weights_refused(weights(&[(&format!("{Q}.{tail}"), &[12])], Dtype::F32), &[tail, what]);
    }
}

#[test]
fn fields_of_wrong_types_and_values_are_named() {
    for rank in [json!(0), json!(-1), json!(2.5), json!("8"), json!(4097), json!(1u64 << 62)] {
        config_refused(json!({"r": rank}), &["from 1 to 4096"]);
        config_refused(json!({"rank_pattern": {"q_proj": rank}}), &["q_proj", "from 1 to 4096"]);
    }
    config_refused(json!({"lora_alpha": "16"}), &["expected a number"]);
    config_refused(json!({"lora_alpha": 1e300}), &["lora_alpha", "in the range of f32"]);
    config_refused(json!({"alpha_pattern": ["q_proj"]}), &["expected an object"]);
    config_refused(json!({"alpha_pattern": {"q_proj": null}}), &["expected a number"]);
    config_refused(json!({"target_modules": 3}), &["expected a string, a list"]);
    config_refused(json!({"target_modules": ["q_proj", 3]}), &["expected a string, a list"]);
    config_refused(json!({"exclude_modules": {"a": 1}}), &["expected a string, a list"]);
    config_refused(json!({"layers_to_transform": [0.5]}), &["a layer's number"]);
    config_refused(json!({"layers_to_transform": 1, "target_modules": "q_proj"}), &["expected null"]);
    config_refused(json!({"layers_pattern": "layers"}), &["expected null"]);
    config_refused(json!({"use_rslora": "yes"}), &["true or false"]);
    config_refused(json!({"alora_invocation_tokens": [-1]}), &["token ids"]);
    config_refused(json!({"alora_invocation_tokens": "<go>"}), &["token ids"]);
    config_refused(json!({"peft_type": null}), &["expected \"LORA\""]);
    config_refused(json!({"bias": true}), &["expected \"none\""]);
    let many: serde_json::Map<_, _> = (0..5000).map(|i| (format!("m{i}"), json!(1))).collect();
    config_refused(json!({"rank_pattern": many}), &["5000 entries"]);
    let phi3 = directory(config(json!({"target_modules": null})), good());
    refused(phi3.path(), Family::Phi3, &["target_modules", "no default"]);
}

#[test]
fn bad_and_explosive_patterns_are_named() {
    for pattern in ["(q_proj", "*q", "[z-a]", r"\w{1000}{1000}", "(a{1000}){1000}", r"(?P<x", r"\"] {
        config_refused(json!({"target_modules": pattern}), &["expected a regular expression"]);
    }
    let sets_layers = |pattern: &str| json!({"layers_pattern": pattern, "layers_to_transform": [0]});
    config_refused(sets_layers("(layers"), &["(layers"]);
    config_refused(json!({"rank_pattern": {"q_proj)": 2}}), &["q_proj)"]);
    config_refused(json!({"target_modules": "(".repeat(5000)}), &["expected a regular expression"]);
    config_refused(json!({"target_modules": "a".repeat(20_000)}), &["20000 bytes"]);
    config_refused(json!({"target_modules": r"((?=.)\w|(?=.)[\w.])*!"}), &["expected a simpler pattern"]);
    // Without look-around such nesting takes linear time.
    let nested = directory(config(json!({"target_modules": r"((\w|\w|\.)*)*!"})), good());
    refused(nested.path(), Family::Llama, &["no factors"]);
}

#[test]
fn configs_that_are_none() {
    for text in ["", "[]", "null", "{", "\u{0}", "{\"r\": 1e999}"] {
        refused(directory(text, good()).path(), Family::Llama, &[CONFIG]);
    }
    refused(directory([0xff, 0xfe], good()).path(), Family::Llama, &[CONFIG]);
    refused(directory("[".repeat(1 << 20), good()).path(), Family::Llama, &[CONFIG]);
    refused(directory(" ".repeat(5 << 20), good()).path(), Family::Llama, &[CONFIG, "4194304"]);
}

#[test]
fn missing_files_and_pickles() {
    refused(Path::new("/nowhere/at/all"), Family::Llama, &[CONFIG, "no such file"]);
    let dir = directory(config(json!({})), good());
    fs::remove_file(dir.path().join(WEIGHTS)).unwrap();
    refused(dir.path(), Family::Llama, &[WEIGHTS, "no such file"]);
    fs::write(dir.path().join("adapter_model.bin"), "pickle").unwrap();
    refused(dir.path(), Family::Llama, &["adapter_model.bin", "save_file"]);
    fs::remove_file(dir.path().join(CONFIG)).unwrap();
    fs::create_dir(dir.path().join(CONFIG)).unwrap();
    refused(dir.path(), Family::Llama, &[CONFIG, "not a regular file"]);
}

#[test]
fn lying_safetensors() {
    let with_header = |header: &str| [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat();
    weights_refused([], &[]);
    weights_refused([0; 7], &[]);
    weights_refused((1u64 << 62).to_le_bytes(), &["4611686018427387904"]);
    weights_refused(with_header("{}"), &["no factors"]);
    weights_refused(with_header("[1, 2]"), &["header"]);
    let tensor = |shape: &str, end: &str| {
        with_header(&format!(
            r#"{{"{Q}.lora_A.weight":{{"dtype":"F32","shape":{shape},"data_offsets":[0,{end}]}}}}"#
        ))
    };
    weights_refused(tensor("[1099511627776,1099511627776]", "4"), &["lora_A"]);
    weights_refused(tensor("[1099511627776,4]", "17592186044416"), &["lora_A"]);
    weights_refused(tensor("[2,12]", "96"), &["lora_A"]);
    weights_refused(tensor("[0,12]", "0"), &["lora_A without lora_B"]);
    let whole = good();
    for len in [whole.len() - 1, whole.len() / 2, 9, 8] {
        weights_refused(&whole[..len], &[]);
    }
    weights_refused([whole, vec![0; 4]].concat(), &[]);
}

#[test]
fn factors_that_do_not_fit() {
    let (a, b) = (format!("{Q}.lora_A.weight"), format!("{Q}.lora_B.weight"));
    weights_refused(weights(&[(&a, &[2, 12])], Dtype::F32), &["layers.0.self_attn.q_proj", "without lora_B"]);
    weights_refused(weights(&[(&b, &[12, 2])], Dtype::F32), &["layers.0.self_attn.q_proj", "without lora_A"]);
    let pair = |a_shape: &[usize], b_shape: &[usize]| weights(&[(&a, a_shape), (&b, b_shape)], Dtype::F32);
    weights_refused(pair(&[2, 16], &[12, 2]), &["lora_A", "[2, 16]", "[2, 12]"]);
    weights_refused(pair(&[2, 12], &[16, 2]), &["lora_B", "[16, 2]", "[12, 2]"]);
    weights_refused(pair(&[3, 12], &[12, 3]), &["lora_A", "[3, 12]", "rank 2 by adapter_config.json"]);
    weights_refused(pair(&[2, 12], &[2, 12]), &["lora_B", "[2, 12]", "[12, 2]"]);
    weights_refused(pair(&[24], &[12, 2]), &["lora_A", "[24]"]);
    weights_refused(
        weights(&[(&a, &[2, 12]), (&b, &[12, 2])], Dtype::I64),
        &["lora_A", "I64", "F32, F16 or BF16"],
    );
    let at = |name: &str, more: &[(&str, &[usize])]| {
        let (a, b) = (format!("{name}.lora_A.weight"), format!("{name}.lora_B.weight"));
        weights(&[&[(&a[..], &[2usize, 12][..]), (&b, &[12, 2])], more].concat(), Dtype::F32)
    };
    weights_refused(at("model.layers.2.self_attn.q_proj", &[]), &["layers.2", "has 2 layers"]);
    weights_refused(at("model.layers.18446744073709551616.self_attn.q_proj", &[]), &["has 2 layers"]);
    weights_refused(at("transformer.h.0.attn.q_proj", &[]), &["transformer.h.0", "no such module"]);
    weights_refused(at("model.layers.+0.self_attn.q_proj", &[]), &["no such module"]);
    weights_refused(at("model.layers.0.self_attn.k_proj", &[]), &["no factors"]);
    let twice = "model.layers.0.self_attn.q_proj.lora_A.weight";
    weights_refused(at(Q, &[(twice, &[2, 12])]), &["the same factor"]);
    let second = [("layers.0.self_attn.q_proj.lora_A.weight", &[2, 12][..])];
    let second = [&second[..], &[("layers.0.self_attn.q_proj.lora_B.weight", &[12, 2])]].concat();
    weights_refused(at(Q, &second), &["a second pair"]);
    let resized = "base_model.model.model.embed_tokens.weight";
    weights_refused(at(Q, &[(resized, &[13, 12])]), &[resized, "[13, 12]", "another vocabulary"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn mutated_weights_never_panic(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = good();
        for (at, value) in edits {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let _ = Adapter::load(directory(config(json!({})), bytes).path(), &spec(Family::Llama));
    }

    #[test]
    fn mutated_configs_never_panic(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        family in prop::sample::select(vec![Family::Gpt2, Family::Opt, Family::Llama, Family::Phi3]),
    ) {
        let fields = json!({
            "target_modules": r"(?!a).*(?:q_proj|v_proj)", "exclude_modules": ["k_proj"], "layers_to_transform": null,
            "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"^model.*q_proj": 3}, "use_rslora": true, "bias": "none",
            "alora_invocation_tokens": [1, 2], "modules_to_save": null,
        });
        let mut bytes = config(fields).into_bytes();
        for (at, value) in edits {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let _ = Adapter::load(directory(bytes, good()).path(), &spec(family));
    }

    #[test]
    fn any_pattern_returns(pattern in r#"[a-z_.*+?()|\[\]{}\\^$0-9<>=!:,-]{0,40}"#) {
        let fields = json!({"target_modules": pattern, "rank_pattern": {pattern.clone(): 2}});
        let _ = Adapter::load(directory(config(fields), good()).path(), &spec(Family::Llama));
    }
}
