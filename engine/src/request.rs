//! What a caller asks for.

use std::time::Duration;

use wattle_shaders::LayerMask;

use crate::error::{Error, Result};
use crate::vote::VoteRule;

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
    /// From which position on.
    pub from: ActiveFrom,
    /// Whether the engine's gates decide, layer by layer and token by token, where it is on within the rest.
    pub gated: bool,
}

/// From which position of a sequence on an adapter is active.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ActiveFrom {
    /// As the adapter says: everywhere, or (aLoRA) from the last match of its invocation tokens on.
    #[default]
    Adapter,
    /// From this position on; 0 is everywhere.
    Position(usize),
    /// From the first generated token on (masked LoRA: the prompt is encoded by the base).
    Generated,
}

impl Lora {
    /// The base model alone.
    pub const BASE: Self =
        Self { adapter: None, layers: LayerMask::NONE, from: ActiveFrom::Adapter, gated: false };

    /// An adapter in all layers, active where it says itself.
    pub fn new(adapter: AdapterId) -> Self {
        Self { adapter: Some(adapter), layers: LayerMask::ALL, from: ActiveFrom::Adapter, gated: false }
    }
}

/// How tokens are drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 is greedy, and anything between 0 and [`Self::LEAST_TEMPERATURE`] is refused.
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

    /// The least temperature above 0: no logit of a model becomes infinite by it.
    pub const LEAST_TEMPERATURE: f32 = 1e-6;

    /// The least repetition penalty, for the same reason.
    pub const LEAST_PENALTY: f32 = 1e-4;

    /// An error that names the value if one cannot be used.
    pub fn check(&self) -> Result<()> {
        const MOST: f32 = 1e4;
        let refused = |name: &str, value: f32, accepted: String| {
            Err(Error::value(name, format!("{value}, expected {accepted}")))
        };
        let Self { temperature, top_p, penalty, .. } = *self;
        let (coldest, least) = (Self::LEAST_TEMPERATURE, Self::LEAST_PENALTY);
        if temperature != 0.0 && !(coldest..=MOST).contains(&temperature) {
            return refused("temperature", temperature, format!("0 (greedy), or {coldest} to {MOST}"));
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return refused("top-p", top_p, "a number above 0 and at most 1".into());
        }
        if !(least..=MOST).contains(&penalty) {
            return refused("repetition penalty", penalty, format!("{least} to {MOST}"));
        }
        Ok(())
    }
}

/// How urgent a request is. Priority decides who begins first; those that have begun are treated alike.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Priority {
    /// When nobody else waits.
    Low,
    /// Like everybody.
    #[default]
    Normal,
    /// Before all others.
    High,
}

/// What a path is made to say when its budget nears its end, so that it still gives an answer (forced answer under a
/// hard budget, arXiv 2603.16867): a path that has not ended when only the room for these ids and the answer is left of
/// [`Request::max_new_tokens`] gets the ids as if it had drawn them, and goes on drawing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Closing {
    /// The closing prompt; at least one token.
    pub ids: Vec<u32>,
    /// Tokens of the answer after it at most; at least one.
    pub answer_tokens: usize,
}

impl Closing {
    /// Tokens that it takes from the budget.
    pub fn tokens(&self) -> usize {
        self.ids.len().saturating_add(self.answer_tokens)
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
    /// Tokens per path at most, a closing prompt and what comes after it included.
    pub max_new_tokens: usize,
    /// How a path is brought to an answer when its tokens run out; `None` cuts it off.
    pub closing: Option<Closing>,
    /// Whether the paths vote on an answer. Needs a tokenizer.
    pub vote: Option<VoteRule>,
    /// Go on after an end-of-sequence token.
    pub ignore_eos: bool,
    /// Texts that end a path when they appear; the text ends before them. Needs a tokenizer.
    pub stop: Vec<String>,
    /// Who begins first.
    pub priority: Priority,
    /// Time from submission until which the request has to end; then its paths end with what they have
    /// ([`crate::Finish::Deadline`]).
    pub deadline: Option<Duration>,
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
            closing: None,
            vote: None,
            ignore_eos: false,
            stop: Vec::new(),
            priority: Priority::Normal,
            deadline: None,
        }
    }

    /// The same request on an adapter.
    pub fn with_lora(self, lora: Lora) -> Self {
        Self { lora, ..self }
    }
}
