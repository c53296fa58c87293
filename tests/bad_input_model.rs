//! Damaged, lying and foreign model directories: each answered by one error that names the culprit, quickly and
//! without large allocation, never by a panic.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking, its helpers too")]

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;
use wattle_engine::model::Model;

/// A small Llama model: its config, and its tensors with their shapes.
fn config() -> Value {
    json!({"model_type": "llama", "vocab_size": 11, "hidden_size": 8, "num_attention_heads": 2,
        "num_key_value_heads": 1, "num_hidden_layers": 1, "intermediate_size": 5, "max_position_embeddings": 16})
}

fn tensors() -> Vec<(&'static str, Vec<usize>)> {
    vec![
        ("lm_head.weight", vec![11, 8]),
        ("model.embed_tokens.weight", vec![11, 8]),
        ("model.layers.0.input_layernorm.weight", vec![8]),
        ("model.layers.0.mlp.down_proj.weight", vec![8, 5]),
        ("model.layers.0.mlp.gate_proj.weight", vec![5, 8]),
        ("model.layers.0.mlp.up_proj.weight", vec![5, 8]),
        ("model.layers.0.post_attention_layernorm.weight", vec![8]),
        ("model.layers.0.self_attn.k_proj.weight", vec![4, 8]),
        ("model.layers.0.self_attn.o_proj.weight", vec![8, 8]),
        ("model.layers.0.self_attn.q_proj.weight", vec![8, 8]),
        ("model.layers.0.self_attn.v_proj.weight", vec![4, 8]),
        ("model.norm.weight", vec![8]),
    ]
}

/// The header of a file with these tensors, and the bytes of its data.
fn header(tensors: &[(&str, Vec<usize>)]) -> (Value, usize) {
    let mut end = 0;
    let entries = tensors.iter().map(|(name, shape)| {
        let start = end;
        end += shape.iter().product::<usize>() * 4;
        (name.to_string(), json!({"dtype": "F32", "shape": shape, "data_offsets": [start, end]}))
    });
    (Value::Object(entries.collect()), end)
}

/// A safetensors file of this header and zeros.
fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

fn weights() -> Vec<u8> {
    let (header, data) = header(&tensors());
    file(&header.to_string(), data)
}

fn directory(config: &str, weights: &[u8]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("config.json"), config).unwrap();
    fs::write(dir.path().join("model.safetensors"), weights).unwrap();
    dir
}

/// The error of a directory, which has to come at once.
fn refusal(dir: &Path) -> String {
    let start = Instant::now();
    let message = Model::load(dir).expect_err("was accepted").to_string();
    assert!(start.elapsed() < Duration::from_secs(2), "{message}");
    assert!(!message.contains('\n') && message.len() < 1000, "{message}");
    message
}

fn refused_weights(weights: &[u8], expected: &[&str]) {
    let dir = directory(&config().to_string(), weights);
    let message = refusal(dir.path());
    for part in expected.iter().chain(&["model.safetensors"]) {
        assert!(message.contains(part), "{part}: {message}");
    }
}

fn refused_header(change: impl FnOnce(&mut Value), expected: &[&str]) {
    let (mut header, data) = header(&tensors());
    change(&mut header);
    refused_weights(&file(&header.to_string(), data), expected);
}

fn refused_config(field: &str, value: Value) {
    let mut config = config();
    config[field] = value.clone();
    let dir = directory(&config.to_string(), &weights());
    let message = refusal(dir.path());
    assert!(message.contains("config.json: ") && message.contains(field), "{value}: {message}");
}

#[test]
fn the_undamaged_model_loads() {
    let dir = directory(&config().to_string(), &weights());
    Model::load(dir.path()).unwrap();
}

#[test]
fn directories_that_are_none() {
    let dir = tempfile::tempdir().unwrap();
    assert!(refusal(&dir.path().join("nowhere")).contains("nowhere"));
    assert!(refusal(dir.path()).contains("config.json"));
    fs::write(dir.path().join("adapter_config.json"), "{}").unwrap();
    assert!(refusal(dir.path()).contains("adapter"));
    fs::create_dir(dir.path().join("config.json")).unwrap();
    assert!(refusal(dir.path()).contains("not a regular file"));
}

#[test]
fn configs_that_are_not_json() {
    for text in
        ["", "{", "[]", "null", "\"x\"", "{\"model_type\": 1e999}", "\u{feff}{}", &"[".repeat(100_000)]
    {
        let dir = directory(text, &weights());
        assert!(refusal(dir.path()).contains("config.json"));
    }
    let dir = directory(&" ".repeat(5 << 20), &weights());
    assert!(refusal(dir.path()).contains("longer"));
}

#[test]
fn sizes_that_are_none() {
    for field in
        ["vocab_size", "hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size"]
    {
        for value in [json!(0), json!(-1), json!(2.5), json!("8"), json!(1u64 << 40), json!(1e30), json!([8])]
        {
            refused_config(field, value);
        }
    }
    refused_config("num_key_value_heads", json!(0));
    refused_config("num_key_value_heads", json!(3));
    refused_config("num_attention_heads", json!(3));
    refused_config("head_dim", json!(5)); // odd
    refused_config("head_dim", json!(1u64 << 31));
    refused_config("max_position_embeddings", json!(0));
    refused_config("num_hidden_layers", json!(128));
}

#[test]
fn fields_of_the_wrong_kind() {
    refused_config("model_type", json!("bert"));
    refused_config("model_type", json!(7));
    refused_config("hidden_act", json!("tanhshrink"));
    refused_config("rms_norm_eps", json!(-1e-5));
    refused_config("rms_norm_eps", json!(1e300));
    refused_config("rope_theta", json!(0));
    refused_config("rope_scaling", json!(3));
    refused_config("tie_word_embeddings", json!("no"));
    refused_config("eos_token_id", json!(-1));
    refused_config("eos_token_id", json!([1, 2.5]));
    refused_config("quantization_config", json!({"quant_method": "bitsandbytes"}));
}

#[test]
fn rotations_that_are_none() {
    let scaled = |scaling: Value, expected: &str| {
        let mut config = config();
        config["rope_scaling"] = scaling;
        let dir = directory(&config.to_string(), &weights());
        let message = refusal(dir.path());
        assert!(message.contains(expected), "{message}");
    };
    scaled(json!({"type": "spiral"}), "spiral");
    scaled(json!({"type": "linear"}), "factor");
    scaled(json!({"type": "linear", "factor": 0}), "factor");
    scaled(
        json!({"type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 1}),
        "high_freq_factor",
    );
    scaled(json!({"type": "longrope", "short_factor": [1, 1], "long_factor": [1]}), "long_factor");
    scaled(json!({"type": "longrope", "short_factor": [1, 0], "long_factor": [1, 1]}), "short_factor");
    scaled(json!({"type": "linear", "factor": 1e-300}), "finite");
}

#[test]
fn headers_that_lie_about_themselves() {
    refused_weights(b"", &["too few"]);
    refused_weights(b"1234567", &["too few"]);
    for length in [1u64 << 62, u64::MAX, 1 << 24, 1 << 40] {
        let mut bytes = weights();
        bytes[..8].copy_from_slice(&length.to_le_bytes());
        refused_weights(&bytes, &["header", &length.to_string()]);
    }
    refused_weights(&file("", 0), &["header"]);
    refused_weights(&file("[]", 0), &["header"]);
    refused_weights(&file("{\"x\": \"y\"}", 0), &["header"]);
    let mut not_text = file("{\"abcdefgh\": 1}", 0);
    not_text[10..14].fill(0xff);
    refused_weights(&not_text, &["header"]);
}

#[test]
fn tensors_that_lie_about_their_place() {
    let name = "model.norm.weight"; // the last one
    let data = header(&tensors()).1;
    refused_header(|h| h[name]["data_offsets"] = json!([data - 32, data + 4]), &[name, "claims bytes"]);
    refused_header(|h| h[name]["data_offsets"] = json!([data, data - 32]), &[name]);
    refused_header(|h| h[name]["data_offsets"] = json!([u64::MAX - 32, u64::MAX]), &[name]);
    refused_header(|h| h[name]["data_offsets"] = json!([-32, 0]), &["header"]);
    refused_header(|h| h[name]["data_offsets"] = json!([0, 32]), &["overlap"]);
    refused_header(|h| h[name]["shape"] = json!([1u64 << 40]), &[name, "1099511627776"]);
    refused_header(|h| h[name]["shape"] = json!([1u64 << 40, 1u64 << 40]), &[name]);
    refused_header(|h| h[name]["shape"] = json!([7]), &[name]);
    refused_header(|h| h[name]["dtype"] = json!("F16"), &[name]);
    refused_header(|h| h[name]["dtype"] = json!("F77"), &["F77"]);
    let mut cut = weights();
    cut.truncate(cut.len() - 1);
    refused_weights(&cut, &[name]);
    let mut long = weights();
    long.push(0);
    refused_weights(&long, &["cut off"]);
}

#[test]
fn tensors_that_wrap_around() {
    // Eight ranges of an eighth of 2^64 each, the last one ending 5 short of it.
    let eighth = 1u64 << 61;
    let entries = (0..8u64).map(|i| {
        let end = if i == 7 { u64::MAX - 4 } else { (i + 1) * eighth };
        (
            format!("t{i}"),
            json!({"dtype": "U8", "shape": [end - i * eighth], "data_offsets": [i * eighth, end]}),
        )
    });
    let header = Value::Object(entries.collect()).to_string();
    refused_weights(&file(&header, 64), &["claims bytes"]);
}

#[test]
fn a_tensor_listed_twice() {
    let text = r#"{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
        "a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}"#;
    refused_weights(&file(text, 8), &["twice"]);
}

#[test]
fn tensors_that_are_missing_or_do_not_fit() {
    for (index, (name, shape)) in tensors().into_iter().enumerate() {
        let mut fewer = tensors();
        fewer.remove(index);
        let (text, data) = header(&fewer);
        refused_weights(&file(&text.to_string(), data), &[name, "missing", &format!("{shape:?}")]);

        let mut other = tensors();
        other[index].1[0] += 1;
        let (text, data) = header(&other);
        let found = format!("{:?}", other[index].1);
        refused_weights(&file(&text.to_string(), data), &[name, &format!("{shape:?}"), &found]);
    }
    refused_header(|h| h["lm_head.weight"]["dtype"] = json!("I32"), &["lm_head.weight", "I32", "BF16"]);
}

#[test]
fn checkpoints_of_other_kinds() {
    let dir = directory(&config().to_string(), &[]);
    fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    assert!(refusal(dir.path()).contains("model.safetensors"));
    fs::write(dir.path().join("pytorch_model.bin"), "PK").unwrap();
    let message = refusal(dir.path());
    assert!(message.contains("pickle") && message.contains("safe_serialization=True"), "{message}");
    fs::create_dir(dir.path().join("model.safetensors")).unwrap();
    assert!(refusal(dir.path()).contains("not a regular file"));
}

#[test]
fn indexes_that_lie() {
    let dir = directory(&config().to_string(), &weights());
    fs::rename(dir.path().join("model.safetensors"), dir.path().join("part.safetensors")).unwrap();
    let index = |text: String, expected: &str| {
        fs::write(dir.path().join("model.safetensors.index.json"), text).unwrap();
        let message = refusal(dir.path());
        assert!(message.contains(expected), "{expected}: {message}");
    };
    let outside = dir.path().join("part.safetensors").display().to_string();
    for file in ["../part.safetensors", "", "/etc/passwd", ".", &outside] {
        index(json!({"weight_map": {"lm_head.weight": file}}).to_string(), "lm_head.weight");
    }
    index(json!({"weight_map": {"lm_head.weight": "other.safetensors"}}).to_string(), "missing");
    index(json!({"weight_map": {}}).to_string(), "missing");
    index(json!({"weight_map": {"lm_head.weight": 3}}).to_string(), "weight_map");
    index("{}".into(), "weight_map");
    // A tensor that its shard does not have.
    let map: Value =
        tensors().iter().map(|(name, _)| (name.to_string(), json!("part.safetensors"))).collect();
    index(json!({"weight_map": {"model.norm.weight": "part.safetensors"}}).to_string(), "q_proj");
    let (fewer, data) = header(&tensors()[1..]);
    fs::write(dir.path().join("part.safetensors"), file(&fewer.to_string(), data)).unwrap();
    index(json!({"weight_map": map}).to_string(), "lm_head.weight");
}

#[cfg(unix)]
#[test]
fn a_pipe_does_not_block() {
    let dir = directory(&config().to_string(), &[]);
    let path = dir.path().join("model.safetensors");
    fs::remove_file(&path).unwrap();
    let made = std::process::Command::new("mkfifo").arg(&path).status();
    if made.is_ok_and(|status| status.success()) {
        assert!(refusal(dir.path()).contains("not a regular file"));
    }
}

/// Replaces bytes, then cuts the end off.
fn mutated(mut bytes: Vec<u8>, changes: &[(usize, u8)], cut: usize) -> Vec<u8> {
    let len = bytes.len();
    for &(place, byte) in changes {
        bytes[place % len] = byte;
    }
    bytes.truncate(len - cut % len);
    bytes
}

fn changes() -> impl Strategy<Value = (Vec<(usize, u8)>, usize)> {
    let places = prop_oneof![0usize..16, 0usize..4096];
    let bytes = prop_oneof![any::<u8>(), proptest::sample::select(b"0129-.e[]{}\",: ".to_vec())];
    (proptest::collection::vec((places, bytes), 0..6), prop_oneof![9 => Just(0usize), 1 => 0usize..4096])
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn mutated_weights_return((changes, cut) in changes()) {
        let dir = directory(&config().to_string(), &mutated(weights(), &changes, cut));
        let _ = Model::load(dir.path());
    }

    #[test]
    fn mutated_configs_return((changes, cut) in changes()) {
        let mut config = config();
        config["rope_scaling"] = json!({"rope_type": "longrope", "short_factor": [1.0, 2.0],
            "long_factor": [1.0, 2.0], "factor": 2.0, "original_max_position_embeddings": 8});
        let text = mutated(config.to_string().into_bytes(), &changes, cut);
        let dir = directory("", &weights());
        fs::write(dir.path().join("config.json"), text).unwrap();
        let _ = Model::load(dir.path());
    }
}
