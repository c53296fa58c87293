//! What comes back of a request.

use std::ops::Range;
use std::time::Duration;

use crate::backend::Timing;
use crate::request::Lora;
use crate::vote::Tally;

/// Why a path ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Finish {
    /// The token limit, or the end of the context.
    Length,
    /// An end-of-sequence token.
    Eos,
    /// A stop text, the caller, or a vote that was decided without this path.
    Stop,
    /// The request was cancelled.
    Cancelled,
    /// The request's deadline passed.
    Deadline,
}

/// One continuation.
#[derive(Clone, Debug, PartialEq)]
pub struct Path {
    /// New tokens only, the end-of-sequence token included.
    pub token_ids: Vec<u32>,
    /// Log-probability of each under the model; 0 for tokens of a closing prompt, which were not drawn.
    pub logprobs: Vec<f32>,
    /// Which of the tokens a closing prompt put there; empty where none was needed.
    pub forced: Range<usize>,
    /// Their text, without special tokens and ending before a stop text; `None` without a tokenizer.
    pub text: Option<String>,
    /// Why it ended.
    pub finish: Finish,
}

impl Path {
    /// Log-probability of all drawn tokens together (natural log); 0 without any.
    pub fn logprob(&self) -> f64 {
        self.logprobs.iter().map(|&logprob| f64::from(logprob)).sum()
    }

    /// [`Self::logprob`] per drawn token; 0 without any.
    pub fn mean_logprob(&self) -> f64 {
        let drawn = self.logprobs.len().saturating_sub(self.forced.len());
        if drawn == 0 { 0.0 } else { self.logprob() / drawn as f64 }
    }
}

/// What a request gave.
#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    /// One entry per path, in order.
    pub paths: Vec<Path>,
    /// How the paths voted, if they were asked to.
    pub vote: Option<Tally>,
    /// What it cost.
    pub report: Report,
}

/// What a request cost. Times are wall time and include other requests that ran in the same steps.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// Prompt tokens.
    pub prompt_tokens: usize,
    /// Prompt tokens that paths did not run, because their keys and values were in the cache.
    pub cached_tokens: usize,
    /// New tokens of all paths.
    pub new_tokens: usize,
    /// From submission to the begin of the first path.
    pub queued: Duration,
    /// From submission to the first new token.
    pub first_token: Duration,
    /// From the first new token to the last.
    pub decode: Duration,
    /// (row, layer) pairs in which LoRA was on.
    pub lora_layers_run: u64,
    /// (row, layer) pairs of rows with an adapter in which a mask kept it off.
    pub lora_layers_skipped: u64,
    /// (row, layer) pairs in which a gate turned LoRA off, of rows that drew a token: what the device reports of them.
    /// They count as run too.
    pub lora_layers_closed: u64,
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
    /// The request: its index in the caller's list.
    pub request: usize,
    /// Path of the request.
    pub path: u32,
    /// The new token.
    pub token: u32,
    /// Its log-probability.
    pub logprob: f32,
    /// New text, whole characters only; may be empty.
    pub text: &'a str,
    /// Why the path ends with this token, if it does.
    pub finish: Option<Finish>,
}

/// What the observer of a stream wants next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Control {
    /// Go on.
    #[default]
    Continue,
    /// End this path.
    Stop,
    /// End all paths of the request, also those that have not begun. One that ends with this token keeps its own end.
    Cancel,
    /// Go on with another adapter, or none, from the next token that has not been started: nothing is encoded again.
    /// The path waits while other requests hold all slots.
    Switch(Lora),
}
