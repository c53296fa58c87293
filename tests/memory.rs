//! Peak anonymous memory on a model of 0.5 B parameters' shape: at most 1.1 × (weights as kept + KV + activations).
//! Linux only: it reads /proc.
#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking, in its helpers too")]
#![cfg(target_os = "linux")]

mod common;

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use wattle_engine::{BackendChoice, EngineOptions, Request};

const LAYERS: usize = 24;
const WIDTH: usize = 896;
const FFN: usize = 4864;
const KV: usize = 128;
const VOCAB: usize = 151_936;

/// Names and shapes of the tensors of a Qwen2.5-0.5B checkpoint.
fn tensors() -> Vec<(String, Vec<usize>)> {
    let mut list = vec![
        ("model.embed_tokens.weight".to_string(), vec![VOCAB, WIDTH]),
        ("model.norm.weight".into(), vec![WIDTH]),
    ];
    for layer in 0..LAYERS {
        let mut add =
            |name: &str, shape: &[usize]| list.push((format!("model.layers.{layer}.{name}"), shape.to_vec()));
        add("input_layernorm.weight", &[WIDTH]);
        add("post_attention_layernorm.weight", &[WIDTH]);
        for (name, rows) in [("q", WIDTH), ("k", KV), ("v", KV)] {
            add(&format!("self_attn.{name}_proj.weight"), &[rows, WIDTH]);
            add(&format!("self_attn.{name}_proj.bias"), &[rows]);
        }
        add("self_attn.o_proj.weight", &[WIDTH, WIDTH]);
        add("mlp.gate_proj.weight", &[FFN, WIDTH]);
        add("mlp.up_proj.weight", &[FFN, WIDTH]);
        add("mlp.down_proj.weight", &[WIDTH, FFN]);
    }
    list
}

/// Writes the model with small f16 values; returns the bytes of its weights.
fn write_model(dir: &Path) -> std::io::Result<u64> {
    let config = serde_json::json!({
        "model_type": "qwen2", "hidden_size": WIDTH, "intermediate_size": FFN, "num_hidden_layers": LAYERS,
        "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": VOCAB, "rope_theta": 1e6,
        "tie_word_embeddings": true, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "eos_token_id": 0,
    });
    std::fs::write(dir.join("config.json"), config.to_string())?;
    let (mut header, mut offset) = (serde_json::Map::new(), 0);
    for (name, shape) in tensors() {
        let end = offset + 2 * shape.iter().product::<usize>();
        header
            .insert(name, serde_json::json!({"dtype": "F16", "shape": shape, "data_offsets": [offset, end]}));
        offset = end;
    }
    let header = serde_json::Value::from(header).to_string();
    let mut file = BufWriter::new(File::create(dir.join("model.safetensors"))?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    // About ±0.03, no two neighbours alike.
    let values = (0..1 << 19).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 16) as f32 / 1e6 - 0.03);
    let block: Vec<u8> = values.flat_map(|value| half::f16::from_f32(value).to_le_bytes()).collect();
    let mut left = offset;
    while left > 0 {
        let length = left.min(block.len());
        file.write_all(&block[..length])?;
        left -= length;
    }
    file.flush()?;
    Ok(offset as u64)
}

/// Anonymous memory of this process \[bytes\].
fn anonymous() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc/self/status");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("RssAnon");
    line.trim().trim_end_matches("kB").trim().parse::<u64>().expect("a number") * 1024
}

/// The highest anonymous memory while `work` runs, sampled every millisecond.
fn peak_while<T>(work: impl FnOnce() -> T) -> (T, u64) {
    let (done, peak) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let watcher = std::thread::spawn({
        let (done, peak) = (Arc::clone(&done), Arc::clone(&peak));
        move || {
            while !done.load(Ordering::Relaxed) {
                peak.fetch_max(anonymous(), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    });
    let result = work();
    done.store(true, Ordering::Relaxed);
    watcher.join().expect("the watcher");
    (result, peak.load(Ordering::Relaxed))
}

/// Memory is the process's: two measurements at once would count each other's.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn check(backend: BackendChoice) {
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let weights = write_model(dir.path()).expect("the disk has a gigabyte");
    let before = anonymous();
    let options = EngineOptions { backend, ..EngineOptions::default() };
    let (result, peak) = peak_while(|| {
        let mut engine = common::engine(dir.path(), options)?;
        let request = Request { ignore_eos: true, ..Request::new((0..40).collect::<Vec<u32>>(), 2) };
        let generation = engine.generate(&request).expect("a generation");
        assert_eq!(generation.paths[0].token_ids.len(), 2);
        Some(engine.backend().memory())
    });
    let Some(memory) = result else { return };
    let allowed = (weights + memory.kv + memory.activations) as f64 * 1.1;
    let used = peak.saturating_sub(before);
    println!("{backend:?}: peak {} MiB of {} MiB allowed", used >> 20, allowed as u64 >> 20);
    assert!((used as f64) < allowed, "{used} bytes of anonymous memory, {allowed} allowed");
    if backend == BackendChoice::Cpu {
        // Mapped weights are not anonymous at all.
        let own = (memory.weights + memory.kv + memory.activations) as f64 * 1.1 + (64 << 20) as f64;
        assert!(
            (used as f64) < own,
            "{used} bytes of anonymous memory beside the mapped weights, {own} allowed"
        );
    }
}

#[test]
fn half_a_billion_parameters_on_the_cpu() {
    check(BackendChoice::Cpu);
}

#[test]
fn half_a_billion_parameters_on_the_gpu() {
    check(BackendChoice::Gpu);
}
