//! One path of a request while it runs.

use std::time::Instant;

use wattle_shaders::{FROM_STATE, GENERATED, LONG_ROPE, LayerMask, NO_INDEX, Row, Sample, Sampled};

use crate::request::{Finish, Path, Request, Sampling};
use crate::stop::StopMatcher;
use crate::tokenizer::{Stream, Tokenizer};

/// An adapter choice with everything looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ResolvedLora {
    /// Adapter slot or [`NO_INDEX`].
    pub slot: u32,
    /// In which layers.
    pub layers: LayerMask,
    /// From which position on.
    pub from: usize,
}

impl ResolvedLora {
    pub fn mask_at(&self, position: usize) -> LayerMask {
        if position >= self.from { self.layers } else { LayerMask::NONE }
    }
}

/// One path while it runs.
pub(crate) struct Sequence<'a> {
    pub request: usize,
    pub path: u32,
    /// Which KV cache and device state.
    pub id: u32,
    pub lora: ResolvedLora,
    /// Known tokens: the prompt and what came back. The device may be ahead of them.
    tokens: Vec<u32>,
    prompt: usize,
    /// Rows that were put into steps.
    planned: usize,
    /// Tokens at most, prompt included.
    limit: usize,
    /// A sequence of more tokens than this uses longrope's long factors.
    original_context: usize,
    long: bool,
    /// The prompt will be copied from the first path instead of being run.
    pub waits_for_copy: bool,
    sampling: Sampling,
    stream: Option<Stream<'a>>,
    stop: StopMatcher,
    text: String,
    logprobs: Vec<f32>,
    pub first_token: Option<Instant>,
    pub last_token: Option<Instant>,
    pub lora_layers: [u64; 2],
}

impl<'a> Sequence<'a> {
    pub fn new(index: usize, path: u32, id: u32, request: &Request, limits: &PathLimits<'a>) -> Self {
        let prompt = request.ids.len();
        Self {
            request: index,
            path,
            id,
            lora: limits.lora,
            tokens: request.ids.clone(),
            prompt,
            planned: 0,
            limit: limits.context.min(prompt.saturating_add(request.max_new_tokens)),
            original_context: limits.original_context,
            long: prompt > limits.original_context,
            waits_for_copy: false,
            sampling: request.sampling,
            stream: limits.tokenizer.map(|tokenizer| tokenizer.stream(true)),
            stop: StopMatcher::new(&request.stop),
            text: String::new(),
            logprobs: Vec::new(),
            first_token: None,
            last_token: None,
            lora_layers: [0; 2],
        }
    }

    /// Positions that another path can copy right now: the prompt without its last token, which each path runs
    /// itself, and draws from. A token that this path has drawn must not be in the state that is copied.
    pub fn copyable(&self) -> Option<usize> {
        (self.planned + 1 == self.prompt && !self.waits_for_copy).then_some(self.planned)
    }

    /// The prompt is in the cache up to its last token.
    pub fn copied(&mut self) {
        (self.waits_for_copy, self.planned) = (false, self.prompt - 1);
    }

    /// Whether there is no room for a new token.
    pub fn is_full(&self) -> bool {
        self.tokens.len() >= self.limit
    }

    /// Rows that are to be run before another path can copy.
    pub fn before_copy(&self) -> usize {
        (self.prompt - 1).saturating_sub(self.planned)
    }

    /// Tokens that were drawn and not yet collected.
    fn in_flight(&self) -> usize {
        (self.planned + 1).saturating_sub(self.tokens.len())
    }

    /// Whether the next row crosses longrope's original context: then the cache is encoded again (as transformers
    /// does), once all tokens are known.
    fn must_reencode(&self) -> bool {
        !self.long && self.planned == self.original_context
    }

    /// Whether the next row is of class prompt.
    pub fn in_prompt(&self) -> bool {
        self.planned < self.prompt
    }

    /// Rows that can go into the next step, of one class, with at most `depth` draws under way.
    pub fn rows_wanted(&mut self, depth: usize) -> usize {
        if self.waits_for_copy {
            return 0;
        }
        if self.must_reencode() {
            if self.in_flight() > 0 && self.planned >= self.tokens.len() {
                return 0;
            }
            (self.planned, self.long) = (0, true);
        }
        let known = self.tokens.len() - self.planned.min(self.tokens.len());
        if known > 0 {
            return if self.in_prompt() { known.min(self.prompt - self.planned) } else { known };
        }
        usize::from(self.in_flight() < depth && self.planned + 1 < self.limit)
    }

    /// Appends up to `count` rows; the last gets a sample if its successor is not known yet. Returns whether it did.
    pub fn push_rows(
        &mut self,
        count: usize,
        layers: usize,
        rows: &mut Vec<Row>,
        samples: &mut Vec<Sample>,
    ) -> bool {
        for _ in 0..count {
            let row = self.row(layers);
            rows.push(row);
            self.planned += 1;
        }
        let draws = self.planned >= self.tokens.len() && self.planned < self.limit;
        if draws {
            samples.push(self.sample(rows.len() as u32 - 1));
        }
        draws
    }

    fn row(&mut self, layers: usize) -> Row {
        let position = self.planned;
        let mask = self.lora.mask_at(position);
        let mut flags = if self.long { LONG_ROPE } else { 0 };
        if !self.in_prompt() {
            flags |= GENERATED;
        }
        if position >= self.tokens.len() {
            flags |= FROM_STATE;
        }
        if self.lora.slot != NO_INDEX {
            let run = (0..layers).filter(|&layer| mask.has(layer as u32)).count();
            self.lora_layers[0] += run as u64;
            self.lora_layers[1] += (layers - run) as u64;
        }
        let token = self.tokens.get(position).copied().unwrap_or(0);
        let row = Row::prompt(token, position as u32, self.id);
        Row { slot: self.lora.slot, lora: mask.words(), flags, ..row }
    }

    fn sample(&self, row: u32) -> Sample {
        let Sampling { temperature, top_k, top_p, penalty, seed } = self.sampling;
        Sample {
            row,
            sequence: self.id,
            path: self.path,
            position: self.planned as u32,
            seed: [seed as u32, (seed >> 32) as u32],
            temperature,
            top_k,
            top_p,
            penalty,
            _pad: [0; 2],
        }
    }

    /// Takes a drawn token; returns its new text and why the path ends here, if it does.
    pub fn accept(&mut self, sampled: Sampled, eos: &[u32]) -> (String, Option<Finish>) {
        let now = Instant::now();
        self.first_token.get_or_insert(now);
        self.last_token = Some(now);
        self.tokens.push(sampled.token);
        self.logprobs.push(sampled.logprob);
        let mut text = self.stream.as_mut().and_then(|stream| stream.push(sampled.token)).unwrap_or_default();
        let stopped;
        (text, stopped) = self.stop.push(&text);
        self.text.push_str(&text);
        let finish = if stopped {
            Some(Finish::Stop)
        } else if eos.contains(&sampled.token) {
            Some(Finish::Eos)
        } else {
            self.is_full().then_some(Finish::Length)
        };
        (text, finish)
    }

    /// The path's result, and text that was still held back.
    pub fn finish(mut self, finish: Finish) -> (Path, String) {
        let mut rest = String::new();
        let has_text = self.stream.is_some();
        if finish != Finish::Stop {
            let tail = self.stream.take().map(Stream::finish).unwrap_or_default();
            let (text, stopped) = self.stop.push(&tail);
            rest = if stopped { text } else { text + &self.stop.finish() };
            self.text.push_str(&rest);
        }
        let token_ids = self.tokens.split_off(self.prompt);
        let text = has_text.then_some(self.text);
        (Path { token_ids, logprobs: self.logprobs, text, finish }, rest)
    }
}

/// What bounds the paths of a request.
pub(crate) struct PathLimits<'a> {
    pub lora: ResolvedLora,
    /// Tokens of a sequence at most.
    pub context: usize,
    pub original_context: usize,
    pub tokenizer: Option<&'a Tokenizer>,
}
