//! Shapes of well-known models, filled with random weights, for benchmarks without a checkpoint.

use rayon::prelude::*;

use super::aligned::AlignedBytes;
use super::matrix::{Bytes, Dtype, Matrix, Vector};
use super::weights::{Order, Source};
use crate::error::{Error, Result};

/// Names and configs, as the models' own config.json have them where they differ from their family's defaults.
const SHAPES: [(&str, &str); 12] = [
    (
        "tiny",
        r#"{"model_type": "llama", "vocab_size": 173, "hidden_size": 40, "intermediate_size": 53,
            "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
            "max_position_embeddings": 256}"#,
    ),
    ("gpt2", r#"{"model_type": "gpt2"}"#),
    ("distilgpt2", r#"{"model_type": "gpt2", "n_layer": 6}"#),
    ("opt-125m", r#"{"model_type": "opt"}"#),
    (
        "opt-350m",
        r#"{"model_type": "opt", "hidden_size": 1024, "ffn_dim": 4096, "num_hidden_layers": 24,
            "num_attention_heads": 16, "word_embed_proj_dim": 512, "do_layer_norm_before": false}"#,
    ),
    (
        "qwen2.5-0.5b",
        r#"{"model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
            "num_attention_heads": 14, "num_key_value_heads": 2, "rope_theta": 1000000.0,
            "tie_word_embeddings": true}"#,
    ),
    (
        "qwen2.5-1.5b",
        r#"{"model_type": "qwen2", "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
            "num_attention_heads": 12, "num_key_value_heads": 2, "rope_theta": 1000000.0,
            "tie_word_embeddings": true}"#,
    ),
    (
        "llama-3.2-1b",
        r#"{"model_type": "llama", "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192,
            "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-5,
            "max_position_embeddings": 131072, "rope_theta": 500000.0, "tie_word_embeddings": true,
            "rope_scaling": {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}}"#,
    ),
    (
        "tinyllama-1.1b",
        r#"{"model_type": "llama", "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22,
            "num_attention_heads": 32, "num_key_value_heads": 4, "rms_norm_eps": 1e-5}"#,
    ),
    ("phi-3-mini", r#"{"model_type": "phi3", "sliding_window": 2047}"#),
    ("mistral-7b", r#"{"model_type": "mistral", "max_position_embeddings": 32768, "rms_norm_eps": 1e-5}"#),
    (
        "llama-3-8b",
        r#"{"model_type": "llama", "vocab_size": 128256, "intermediate_size": 14336, "num_key_value_heads": 8,
            "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 500000.0}"#,
    ),
];

/// The names that [`super::Model::random`] accepts.
pub fn shapes() -> impl Iterator<Item = &'static str> {
    SHAPES.iter().map(|(name, _)| *name)
}

/// The config of a shape.
pub(super) fn config(shape: &str) -> Result<&'static str> {
    let found = SHAPES.iter().find(|(name, _)| *name == shape);
    found.map(|(_, config)| *config).ok_or_else(|| {
        let accepted: Vec<_> = shapes().collect();
        Error::value("shape", format!("{shape:?} is not known; accepted: {}", accepted.join(", ")))
    })
}

/// A source of random tensors, the same for the same seed whatever the number of threads.
pub(super) struct Random {
    dtype: Dtype,
    /// Advances with every tensor.
    state: u64,
}

impl Random {
    pub(super) fn new(dtype: Dtype, seed: u64) -> Self {
        Self { dtype, state: seed }
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.state)
    }

    /// Random elements of a pattern.
    pub(super) fn fill(&mut self, pattern: &Pattern, data: &mut [u8]) {
        /// Words that one generator makes.
        const CHUNK: usize = 1 << 16;
        let seed = self.next();
        data.par_chunks_mut(8 * CHUNK).enumerate().for_each(|(chunk, bytes)| {
            let mut state = mix(seed.wrapping_add(chunk as u64)) | 1; // xorshift must not start from 0
            let mut word = || pattern.of(xorshift(&mut state)).to_ne_bytes();
            let (words, rest) = bytes.as_chunks_mut();
            words.iter_mut().for_each(|bytes| *bytes = word());
            rest.iter_mut().zip(word()).for_each(|(byte, random)| *byte = random);
        });
    }
}

impl Source for Random {
    /// Names are the usual ones, and a tied head is not stored.
    fn has(&self, _name: &str) -> bool {
        false
    }

    fn matrix(&mut self, name: &str, rows: usize, cols: usize, _order: Order) -> Result<Matrix> {
        let no_memory = || Error::value("shape", format!("no memory for {name}, [{rows}, {cols}]"));
        let bytes = rows.checked_mul(cols).and_then(|n| n.checked_mul(self.dtype.size()));
        let mut data = bytes.and_then(AlignedBytes::zeroed).ok_or_else(no_memory)?;
        self.fill(&Pattern::near(self.dtype, cols as f64), data.as_mut());
        Matrix::new(name, rows, cols, self.dtype, Bytes::new(data)).ok_or_else(no_memory)
    }

    /// Weights of norms lie around 1, biases around 0.
    fn vector(&mut self, name: &str, len: usize) -> Result<Vector> {
        let middle = if name.ends_with(".weight") { 1.0 } else { 0.0 };
        let value = |_| middle + (self.next() as i64 as f32) * (0.125 / i64::MAX as f32);
        Ok(Vector { name: name.into(), values: (0..len).map(value).collect() })
    }
}

/// A source of zeros, f16.
pub(super) struct Blank;

impl Source for Blank {
    fn has(&self, _name: &str) -> bool {
        false
    }

    fn matrix(&mut self, name: &str, rows: usize, cols: usize, _order: Order) -> Result<Matrix> {
        let bytes = rows.checked_mul(cols).and_then(|n| n.checked_mul(Dtype::F16.size()));
        let data = bytes.and_then(AlignedBytes::zeroed).map(Bytes::new);
        let matrix = data.and_then(|data| Matrix::new(name, rows, cols, Dtype::F16, data));
        matrix.ok_or_else(|| Error::value("shape", format!("no memory for {name}, [{rows}, {cols}]")))
    }

    fn vector(&mut self, name: &str, len: usize) -> Result<Vector> {
        Ok(Vector { name: name.into(), values: vec![0.0; len] })
    }
}

/// Turns random words into elements ±[1, 2) · 2^e: signs and mantissas are the words' bits, so that filling costs one
/// `and` and one `or` per word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Pattern {
    keep: u64,
    set: u64,
}

impl Pattern {
    /// All bits random.
    pub(super) const ALL: Self = Self { keep: u64::MAX, set: 0 };

    /// Elements whose mean square is near 1 / `inverse`.
    pub(super) fn near(dtype: Dtype, inverse: f64) -> Self {
        // The mean square of ±[1, 2) is 7/3.
        let exponent = -(inverse * 7.0 / 3.0).log2() / 2.0;
        let exponent = exponent.round().max(-14.0) as i64; // -14: the smallest of f16
        let every = |bits: u64, size: usize| {
            if size == 2 { bits * 0x0001_0001_0001_0001 } else { bits * 0x1_0000_0001 }
        };
        let (bias, mantissa, bits) = match dtype {
            Dtype::F32 => (127, 23, 32),
            Dtype::F16 => (15, 10, 16),
            Dtype::Bf16 => (127, 7, 16),
        };
        let keep = 1 << (bits - 1) | ((1 << mantissa) - 1);
        let set = ((bias + exponent) as u64) << mantissa;
        Self { keep: every(keep, dtype.size()), set: every(set, dtype.size()) }
    }

    fn of(&self, word: u64) -> u64 {
        word & self.keep | self.set
    }
}

/// The finalizer of splitmix64 (Steele et al. 2014).
fn mix(x: u64) -> u64 {
    let x = (x ^ x >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ x >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ x >> 31
}

/// xorshift64 (Marsaglia 2003).
fn xorshift(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}
