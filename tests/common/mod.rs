//! What several test binaries share: fixtures, engines, and what to do where there is no GPU.
#![allow(clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]
#![allow(dead_code, reason = "every test binary uses another part")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use safetensors::{Dtype, SafeTensors};
use wattle_engine::adapter::{ActivationRule, Adapter, Factors, Pair, Place, projections};
use wattle_engine::backend::cpu::{CpuBackend, CpuOptions, Mode};
use wattle_engine::backend::{Backend, Capacity, Limits};
use wattle_engine::model::Model;
use wattle_engine::{BackendChoice, Engine, EngineOptions, Error, Precision};

/// The fixtures' folder.
pub fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

/// The tensors of an `expected.safetensors`.
pub struct Expected(Vec<u8>);

impl Expected {
    pub fn read(dir: &std::path::Path) -> Self {
        let file = dir.join("expected.safetensors");
        Self(std::fs::read(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display())))
    }

    pub fn ids(&self, name: &str) -> Option<Vec<u32>> {
        let tensors = SafeTensors::deserialize(&self.0).expect("a safetensors file");
        let view = tensors.tensor(name).ok()?;
        assert_eq!(view.dtype(), Dtype::I64, "{name}");
        let words = view.data().chunks_exact(8);
        Some(words.map(|w| i64::from_le_bytes(w.try_into().expect("8 bytes")) as u32).collect())
    }

    pub fn floats(&self, name: &str) -> Option<Vec<f32>> {
        let tensors = SafeTensors::deserialize(&self.0).expect("a safetensors file");
        let view = tensors.tensor(name).ok()?;
        assert_eq!(view.dtype(), Dtype::F32, "{name}");
        let words = view.data().chunks_exact(4);
        Some(words.map(|w| f32::from_le_bytes(w.try_into().expect("4 bytes"))).collect())
    }
}

/// An engine for tests: checked shaders, few sequences.
pub fn options(backend: BackendChoice) -> EngineOptions {
    EngineOptions {
        backend,
        sequences: 4,
        context: 64,
        checked: true,
        threads: Some(2),
        ..EngineOptions::default()
    }
}

/// The engine, or `None` (with the reason printed) where it needs a GPU and there is none.
pub fn engine(dir: &std::path::Path, options: EngineOptions) -> Option<Engine> {
    let gpu = options.backend == BackendChoice::Gpu;
    match Engine::load(dir, options) {
        Ok(engine) => Some(engine),
        Err(Error::Device { device, reason }) if gpu && !gpu_required() => {
            println!("skipped: needs a GPU adapter, and there is none ({device}: {reason})");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// One model of each family, with sizes that are no multiples of anything.
pub const MODELS: [&str; 7] = ["llama", "gpt2-prefix", "opt-350m", "qwen2", "qwen3", "phi3", "mistral"];

/// A backend alone, or `None` (with the reason printed) where it needs a GPU and there is none.
pub fn backend(options: &EngineOptions, capacity: Capacity) -> Option<Box<dyn Backend>> {
    match wattle_engine::backend::create(options, capacity) {
        Ok(backend) => Some(backend),
        Err(error) if options.backend == BackendChoice::Gpu && !gpu_required() => {
            println!("skipped on a GPU: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// The plain twins as a backend, which can count.
pub fn twins(capacity: Capacity) -> CpuBackend {
    let options = CpuOptions {
        mode: Mode::Plain,
        precision: Precision::Exact,
        threads: Some(1),
        limits: Limits::default(),
        capacity,
    };
    CpuBackend::new(options).expect("a backend")
}

/// Runs a check on the CPU, and on the GPU where there is one that runs this model.
pub fn on_both(dir: &std::path::Path, check: impl Fn(&EngineOptions)) {
    for backend in [BackendChoice::Cpu, BackendChoice::Gpu] {
        let options = options(backend);
        if engine(dir, options.clone()).is_some() {
            check(&options);
        }
    }
}

/// An adapter on all projections of a model, with numbers that mean nothing.
pub fn adapter(model: &Model, rank: usize, seed: usize) -> Adapter {
    let mut pairs = BTreeMap::new();
    for (layer, weights) in (0..).zip(&model.weights.layers) {
        for (target, linear) in projections(weights) {
            let (rows, cols) = (linear.weight.rows, linear.weight.cols);
            let number = |i: usize| ((i * 37 + seed * 11 + rows) % 23) as f32 * 0.02 - 0.21;
            let [a, b] = [rank * cols, rows * rank].map(|len| (0..len).map(number).collect());
            pairs.insert(Place { layer, target }, Pair { rank, cols, rows, a, b });
        }
    }
    let factors = Arc::new(Factors::new(pairs));
    Adapter { name: format!("adapter {seed}"), factors, rule: ActivationRule::Always }
}

/// Whether a missing GPU adapter is a failure.
pub fn gpu_required() -> bool {
    std::env::var_os("WATTLE_REQUIRE_GPU").is_some_and(|value| value == "1")
}

/// The largest difference, relative to the largest magnitude of `expected`; infinite for NaN or another length.
pub fn error(actual: &[f32], expected: &[f32]) -> f32 {
    if actual.len() != expected.len() || actual.iter().any(|x| !x.is_finite()) {
        return f32::INFINITY;
    }
    let scale = expected.iter().fold(0.0_f32, |max, x| max.max(x.abs()));
    actual.iter().zip(expected).fold(0.0_f32, |max, (a, e)| max.max((a - e).abs())) / scale
}
