//! Loading maps weights: a model of half a billion parameters costs next to no anonymous memory. This test has a
//! binary of its own, because the measured figure is the process's.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

use std::fs::{self, File};
use std::io::Write;

use serde_json::json;
use wattle_engine::model::Model;

/// Bytes of anonymous memory of this process, proc(5).
fn anonymous() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// The tensors of Qwen2.5-0.5B.
fn tensors() -> Vec<(String, Vec<u64>)> {
    let mut tensors = vec![
        ("model.embed_tokens.weight".to_string(), vec![151_936, 896]),
        ("model.norm.weight".to_string(), vec![896]),
    ];
    for layer in 0..24 {
        let parts: [(&str, &[u64]); 12] = [
            ("input_layernorm.weight", &[896]),
            ("mlp.down_proj.weight", &[896, 4864]),
            ("mlp.gate_proj.weight", &[4864, 896]),
            ("mlp.up_proj.weight", &[4864, 896]),
            ("post_attention_layernorm.weight", &[896]),
            ("self_attn.k_proj.bias", &[128]),
            ("self_attn.k_proj.weight", &[128, 896]),
            ("self_attn.o_proj.weight", &[896, 896]),
            ("self_attn.q_proj.bias", &[896]),
            ("self_attn.q_proj.weight", &[896, 896]),
            ("self_attn.v_proj.bias", &[128]),
            ("self_attn.v_proj.weight", &[128, 896]),
        ];
        tensors.extend(parts.map(|(name, shape)| (format!("model.layers.{layer}.{name}"), shape.to_vec())));
    }
    tensors
}

#[test]
fn mapped_weights_cost_no_anonymous_memory() {
    let dir = tempfile::tempdir().unwrap();
    let config = json!({"model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864,
        "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2, "tie_word_embeddings": true});
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let mut end = 0;
    let entries = tensors().into_iter().map(|(name, shape)| {
        let start = end;
        end += shape.iter().product::<u64>() * 2;
        (name, json!({"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}))
    });
    let mut header = serde_json::Value::Object(entries.collect()).to_string();
    header.push_str(&" ".repeat(7 - (header.len() + 7) % 8)); // so that the data is aligned
    let mut file = File::create(dir.path().join("model.safetensors")).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    file.set_len(8 + header.len() as u64 + end).unwrap(); // a hole, which takes no disk

    let before = anonymous();
    let model = Model::load(dir.path()).unwrap();
    let down = &model.weights.layers[0].down.weight.parts[0].data;
    let read: u64 = down.as_ref().iter().map(|&byte| u64::from(byte)).sum();
    let grown = anonymous().saturating_sub(before);
    println!("{end} bytes of weights: {grown} bytes of anonymous memory");
    assert_eq!(read, 0);
    assert!(end > 980_000_000 && grown < 4 << 20, "{grown} bytes");
}
