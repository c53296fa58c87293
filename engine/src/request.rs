//! What a caller asks for and what comes back.

use std::time::Duration;

use wattle_shaders::LayerMask;

use crate::backend::Timing;
use crate::error::{Error, Result};

/// Names an adapter that an engine has loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AdapterId(pub(crate) u32);

/// Where an adapter is on: all conditions must hold (MISSION part A).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lora {
    /// Which adapter; `None` is the base model.
    pub adapter: Option<AdapterId>,
    /// In which layers.
    pub layers: LayerMask,
    /// ActiveFrom which position on.
    pub from: ActiveFrom,
}

/// ActiveFrom which position of a sequence on an adapter is active.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ActiveFrom {
    /// As the adapter says: everywhere, or (aLoRA) from the last match of its invocation tokens on.
    #[default]
    Adapter,
    /// ActiveFrom this position on; 0 is everywhere.
    Position(usize),
    /// From the first generated token on (masked LoRA: the prompt is encoded by the base).
    Generated,
}

impl Lora {
    /// The base model alone.
    pub const BASE: Self = Self { adapter: None, layers: LayerMask::NONE, from: ActiveFrom::Adapter };

    /// An adapter in all layers, active where it says itself.
    pub fn new(adapter: AdapterId) -> Self {
        Self { adapter: Some(adapter), layers: LayerMask::ALL, from: ActiveFrom::Adapter }
    }
}

/// How tokens are drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 is greedy.
    pub temperature: f32,
    /// Keep logits not below the k-th largest; 0 keeps all.
    pub top_k: u32,
    /// Keep the smallest set of most probable tokens whose mass reaches this; 1 keeps all.
    pub top_p: f32,
    /// Repetition penalty (Keskar et al. 2019); 1 is none.
    pub penalty: f32,
    /// Seed: with path and position it fixes every draw.
    pub seed: u64,
}

impl Sampling {
    /// The most probable token.
    pub const GREEDY: Self = Self { temperature: 0.0, top_k: 0, top_p: 1.0, penalty: 1.0, seed: 0 };

    /// An error that names the value if one cannot be used.
    pub fn check(&self) -> Result<()> {
        let finite = |name: &str, value: f32, low: f32, high: f32, open: bool| {
            let ok = value.is_finite() && value <= high && if open { value > low } else { value >= low };
            let bound = if open { "above" } else { "at least" };
            if ok {
                Ok(())
            } else {
                Err(Error::value(name, format!("{value} is not {bound} {low} and at most {high}")))
            }
        };
        finite("temperature", self.temperature, 0.0, 1e4, false)?;
        finite("top-p", self.top_p, 0.0, 1.0, true)?;
        finite("repetition penalty", self.penalty, 0.0, 1e4, true)
    }
}

/// One prompt and what to do with it.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// The prompt's token ids; at least one.
    pub ids: Vec<u32>,
    /// Adapter, layers and start.
    pub lora: Lora,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// Continuations of the prompt.
    pub paths: u32,
    /// Tokens per path at most.
    pub max_new_tokens: usize,
    /// Go on after an end-of-sequence token.
    pub ignore_eos: bool,
    /// Texts that end a path when they appear; the text ends before them. Needs a tokenizer.
    pub stop: Vec<String>,
}

impl Request {
    /// One greedy continuation by the base model.
    pub fn new(ids: impl Into<Vec<u32>>, max_new_tokens: usize) -> Self {
        Self {
            ids: ids.into(),
            lora: Lora::BASE,
            sampling: Sampling::GREEDY,
            paths: 1,
            max_new_tokens,
            ignore_eos: false,
            stop: Vec::new(),
        }
    }

    /// The same request on an adapter.
    pub fn with_lora(self, lora: Lora) -> Self {
        Self { lora, ..self }
    }
}

/// Why a path ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Finish {
    /// The token limit, or the end of the context.
    Length,
    /// An end-of-sequence token.
    Eos,
    /// A stop text, or the caller.
    Stop,
}

/// One continuation.
#[derive(Clone, Debug, PartialEq)]
pub struct Path {
    /// New tokens only, the end-of-sequence token included.
    pub token_ids: Vec<u32>,
    /// Log-probability of each under the model.
    pub logprobs: Vec<f32>,
    /// Their text, without special tokens and ending before a stop text; `None` without a tokenizer.
    pub text: Option<String>,
    /// Why it ended.
    pub finish: Finish,
}

/// What a request gave.
#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    /// One entry per path, in order.
    pub paths: Vec<Path>,
    /// What it cost.
    pub report: Report,
}

/// What a request cost. Times are wall time and include other requests that ran in the same steps.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// Prompt tokens.
    pub prompt_tokens: usize,
    /// Prompt tokens that paths did not run, because they found their KV in the cache.
    pub cached_tokens: usize,
    /// New tokens of all paths.
    pub new_tokens: usize,
    /// From submission to the first new token.
    pub first_token: Duration,
    /// From the first new token to the last.
    pub decode: Duration,
    /// (row, layer) pairs in which LoRA was on.
    pub lora_layers_run: u64,
    /// (row, layer) pairs of rows with an adapter in which a mask kept it off.
    pub lora_layers_skipped: u64,
    /// What ops took, if the engine was told to time them: of all requests in flight.
    pub timings: Vec<Timing>,
}

impl Report {
    /// Prompt tokens per second until the first new token.
    pub fn prompt_rate(&self) -> f64 {
        rate(self.prompt_tokens, self.first_token)
    }

    /// New tokens per second after each path's first.
    pub fn decode_rate(&self, paths: usize) -> f64 {
        rate(self.new_tokens.saturating_sub(paths), self.decode)
    }
}

fn rate(count: usize, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { count as f64 / time.as_secs_f64() }
}

/// A token as it comes.
#[derive(Clone, Debug, PartialEq)]
pub struct Event<'a> {
    /// Index of the request.
    pub request: usize,
    /// Path of the request.
    pub path: u32,
    /// The new token.
    pub token: u32,
    /// Its log-probability.
    pub logprob: f32,
    /// New text, whole characters only; may be empty.
    pub text: &'a str,
}

/// What the observer of a stream wants next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Control {
    /// Go on.
    #[default]
    Continue,
    /// End this path.
    Stop,
    /// Go on with another adapter, or none, from the next token that has not been started: nothing is encoded again.
    Switch(Lora),
}
