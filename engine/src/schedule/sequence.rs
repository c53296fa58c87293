//! One path of a request while it runs.

use std::sync::Arc;
use std::time::Duration;

use wattle_shaders::{FROM_STATE, GATED, GENERATED, LONG_ROPE, LayerMask, NO_INDEX, Row, Sample, Sampled};

use crate::generation::{Finish, Path};
use crate::request::{Request, Sampling};
use crate::schedule::deliver::Delivered;
use crate::schedule::host::Room;
use crate::schedule::job::Order;
use crate::schedule::loras::{Choice, Loras};
use crate::stop::StopMatcher;
use crate::tokenizer::{Stream, Tokenizer};

/// What bounds the paths of a request.
#[derive(Clone)]
pub(crate) struct PathLimits {
    /// Tokens of a sequence at most.
    pub context: usize,
    /// A sequence of more tokens than this uses longrope's long factors.
    pub original_context: usize,
    pub tokenizer: Option<Arc<Tokenizer>>,
    pub eos: Arc<[u32]>,
}

impl PathLimits {
    /// Tokens of each path of a request at most, prompt included.
    pub fn tokens(&self, request: &Request) -> usize {
        self.context.min(request.ids.len().saturating_add(request.max_new_tokens))
    }
}

/// One path while it runs.
pub(crate) struct Sequence {
    /// Serial number, never given twice.
    pub serial: u64,
    /// Which job.
    pub job: u64,
    pub path: u32,
    /// Which KV cache and device state.
    pub id: u32,
    /// The prompt will be copied from the first path instead of being run.
    pub waits_for_copy: bool,
    /// It has no room and no slot: it is about to begin, or its device was made anew.
    pub waits_for_room: bool,
    pub loras: Loras,
    request: Arc<Request>,
    limits: PathLimits,
    /// Known tokens: the prompt and what came back. The device may be ahead of them.
    tokens: Vec<u32>,
    /// How many of them there were when the last drawn one had come.
    drawn: usize,
    /// Rows that were put into steps.
    planned: usize,
    /// The most rows that were ever put into steps: rows below it that run again are no news to the report.
    counted: usize,
    long: bool,
    /// Indices of generated tokens that a closing prompt put there.
    forced: std::ops::Range<usize>,
    stream: Option<Stream<Arc<Tokenizer>>>,
    stop: StopMatcher,
    /// Whether a stop text came: what follows it is not shown.
    stopped: bool,
    text: String,
    logprobs: Vec<f32>,
    /// Whether its prompt was run, on this device, and noticed as one that others can share.
    pub shareable: bool,
    pub first_token: Option<Duration>,
    pub last_token: Option<Duration>,
    pub lora_layers: [u64; 2],
    /// (row, layer) pairs of rows that drew, in which a gate turned LoRA off.
    pub closed: u64,
}

impl Sequence {
    /// Path `path` of a job, on sequence `id` of the device, where it has no room yet.
    pub fn new([serial, job]: [u64; 2], (path, id): (u32, u32), order: &Order) -> Self {
        let Order { request, lora, limits } = order;
        Self {
            serial,
            job,
            path,
            id,
            waits_for_copy: false,
            waits_for_room: true,
            loras: Loras::new(lora.clone()),
            tokens: request.ids.clone(),
            drawn: 0,
            planned: 0,
            counted: 0,
            long: request.ids.len() > limits.original_context,
            forced: 0..0,
            stream: limits.tokenizer.as_ref().map(|tokenizer| Stream::new(Arc::clone(tokenizer), true)),
            stop: StopMatcher::new(&request.stop),
            stopped: false,
            text: String::new(),
            logprobs: Vec::new(),
            shareable: false,
            first_token: None,
            last_token: None,
            lora_layers: [0; 2],
            closed: 0,
            request: Arc::clone(request),
            limits: limits.clone(),
        }
    }

    fn prompt(&self) -> usize {
        self.request.ids.len()
    }

    /// Tokens at most, prompt included.
    pub fn limit(&self) -> usize {
        self.limits.tokens(&self.request)
    }

    /// The length at which the closing prompt begins.
    fn closing_at(&self) -> Option<usize> {
        let closing = self.request.closing.as_ref()?;
        let at = self.limit().checked_sub(closing.tokens())?;
        Some(at).filter(|_| self.forced.is_empty())
    }

    /// Positions that another path can copy right now: the prompt without its last token, which each path runs
    /// itself, and draws from. A token that this path has drawn must not be in the state that is copied.
    pub fn copyable(&self) -> Option<usize> {
        let at_end = self.planned + 1 == self.prompt() && self.has_drawn_nothing();
        (at_end && !self.waits_for_copy).then_some(self.planned)
    }

    /// Whether another path should wait for this one's prompt.
    pub fn will_be_copyable(&self) -> bool {
        self.has_drawn_nothing() && !self.waits_for_copy && self.before_copy() > 0
    }

    fn has_drawn_nothing(&self) -> bool {
        self.tokens.len() == self.prompt() && self.planned <= self.prompt()
    }

    /// The prompt is in the cache up to its last token.
    pub fn copied(&mut self) {
        (self.waits_for_copy, self.planned) = (false, self.prompt() - 1);
        self.counted = self.counted.max(self.planned);
    }

    /// Whether there is no room for a new token.
    pub fn is_full(&self) -> bool {
        self.tokens.len() >= self.limit()
    }

    /// The room that it needs.
    pub fn room(&self) -> Room {
        let positions = self.limit();
        Room { positions, anew: !self.long && positions > self.limits.original_context }
    }

    /// What it has to run before it draws again, as far as the adapter that is in place holds for it.
    pub fn first_rows(&self) -> Vec<Row> {
        let end = self.loras.span(0).end.min(self.tokens.len());
        (0..end).map(|position| self.row_at(position)).collect()
    }

    /// So many of its positions are in the cache already.
    pub fn found(&mut self, positions: usize) {
        self.planned = positions;
        self.counted = self.counted.max(positions);
    }

    /// Rows that are to be run before another path can copy.
    pub fn before_copy(&self) -> usize {
        (self.prompt() - 1).saturating_sub(self.planned)
    }

    /// Goes on with another adapter, or none, from the next row that is in no step if nothing made the path wait: `depth`
    /// draws may be under way. What others do must not move it.
    pub fn switch(&mut self, lora: Choice, depth: usize) {
        // A closing prompt is known: nothing was drawn ahead of it.
        let closes = self.tokens.len() > self.drawn || self.closes();
        let ahead = if closes { 0 } else { depth.saturating_sub(1) };
        let next = self.drawn.saturating_sub(1) + ahead;
        self.loras.switch(next.max(self.planned).max(self.counted), lora);
    }

    /// The adapter choice that its next row needs.
    pub fn choice(&self) -> &Choice {
        self.loras.choice(self.planned)
    }

    /// Lets go of the slot that its next row does not need: that slot, to be given back.
    pub fn leave_other_slot(&mut self) -> Option<u32> {
        self.loras.stay(self.planned);
        if self.loras.is_placed(self.planned) { None } else { self.loras.leave() }
    }

    /// Whether its next row, if there is one, needs another slot than it has; one that has no room yet gets both together.
    pub fn waits_for_slot(&self) -> bool {
        !self.waits_for_room && self.planned + 1 < self.limit() && !self.loras.is_placed(self.planned)
    }

    /// The adapter that its next row needs is in this slot, if it needs one.
    pub fn place(&mut self, slot: Option<u32>) {
        self.loras.place(self.planned, slot);
    }

    /// The device has forgotten everything: all rows run again, with the adapters and masks that they had. What was
    /// drawn and not collected is drawn again, and comes out the same. Returns the slot that it held.
    pub fn restart(&mut self) -> Option<u32> {
        (self.planned, self.waits_for_copy, self.waits_for_room) = (0, false, true);
        self.shareable = false;
        self.loras.leave()
    }

    /// Tokens that were drawn and not yet collected.
    fn in_flight(&self) -> usize {
        (self.planned + 1).saturating_sub(self.tokens.len())
    }

    /// Whether its tokens reach past longrope's original context for the first time: then the cache is encoded again (as
    /// transformers does).
    fn must_reencode(&self) -> bool {
        !self.long && self.tokens.len() > self.limits.original_context
    }

    /// Whether the next row is of class prompt.
    pub fn in_prompt(&self) -> bool {
        self.planned < self.prompt()
    }

    /// Rows that can go into the next step, of one class, with at most `depth` draws under way.
    pub fn rows_wanted(&mut self, depth: usize) -> usize {
        if self.waits_for_copy || self.waits_for_room {
            return 0;
        }
        if self.must_reencode() {
            (self.planned, self.long) = (0, true);
        }
        // The token behind the original context has to be known first.
        let held = !self.long && self.planned == self.limits.original_context;
        if held || self.waits_for_slot() {
            return 0;
        }
        let known = self.tokens.len() - self.planned.min(self.tokens.len());
        if known > 0 {
            let known = known.min(self.loras.span(self.planned).len());
            return if self.in_prompt() { known.min(self.prompt() - self.planned) } else { known };
        }
        // What follows the last token before a closing prompt is known as soon as that token is.
        let closes = self.closing_at() == Some(self.planned + 1);
        usize::from(self.in_flight() < depth && self.planned + 1 < self.limit() && !closes)
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
        let draws = self.planned >= self.tokens.len() && self.planned < self.limit();
        if draws {
            samples.push(self.sample(rows.len() as u32 - 1));
        }
        draws
    }

    fn row(&mut self, layers: usize) -> Row {
        let position = self.planned;
        let row = self.row_at(position);
        if row.slot != NO_INDEX && position >= self.counted {
            let mask = LayerMask::from_words(row.lora);
            let run = (0..layers).filter(|&layer| mask.has(layer as u32)).count();
            self.lora_layers[0] += run as u64;
            self.lora_layers[1] += (layers - run) as u64;
        }
        self.counted = self.counted.max(position + 1);
        row
    }

    fn row_at(&self, position: usize) -> Row {
        let lora = self.loras.resolved(position);
        let mask = lora.mask_at(position);
        let mut flags = if self.long { LONG_ROPE } else { 0 };
        if position >= self.prompt() {
            flags |= GENERATED;
        }
        if position >= self.tokens.len() {
            flags |= FROM_STATE;
        }
        if lora.gated {
            flags |= GATED;
        }
        let token = self.tokens.get(position).copied().unwrap_or(0);
        let row = Row::prompt(token, position as u32, self.id);
        Row { slot: lora.slot, lora: mask.words(), flags, ..row }
    }

    fn sample(&self, row: u32) -> Sample {
        let Sampling { temperature, top_k, top_p, penalty, seed } = self.request.sampling;
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

    /// Takes a drawn token: its new text, and why the path ends here, if it does.
    pub fn accept(&mut self, sampled: Sampled, now: Duration) -> Delivered {
        self.first_token.get_or_insert(now);
        self.last_token = Some(now);
        self.closed += u64::from(sampled.closed);
        let text = self.push(sampled.token, sampled.logprob);
        self.drawn = self.tokens.len();
        let (text, stopped) = self.stop.push(&text);
        self.text.push_str(&text);
        self.stopped = stopped;
        let finish = if stopped {
            Some(Finish::Stop)
        } else if self.limits.eos.contains(&sampled.token) {
            Some(Finish::Eos)
        } else {
            self.is_full().then_some(Finish::Length)
        };
        let rest = if finish.is_some() && !stopped { self.flush() } else { String::new() };
        let text = text + &rest;
        Delivered { token: sampled.token, logprob: sampled.logprob, text, finish }
    }

    /// Whether a closing prompt begins behind the tokens that there are.
    fn closes(&self) -> bool {
        self.closing_at().is_some_and(|at| self.tokens.len() >= at)
    }

    /// Puts the next token of a closing prompt behind the path's, if it is time for one. Its text is not searched for
    /// stop texts.
    pub fn force(&mut self) -> Option<Delivered> {
        if self.closes() {
            self.forced = self.logprobs.len()..self.logprobs.len();
        } else if self.forced.is_empty() {
            return None;
        }
        let token = *self.request.closing.as_ref()?.ids.get(self.forced.len())?;
        let text = self.stop.finish() + &self.push(token, 0.0);
        self.text.push_str(&text);
        self.forced.end = self.logprobs.len();
        Some(Delivered { token, logprob: 0.0, text, finish: None })
    }

    /// Adds a token; returns its text.
    fn push(&mut self, token: u32, logprob: f32) -> String {
        self.tokens.push(token);
        self.logprobs.push(logprob);
        self.stream.as_mut().and_then(|stream| stream.push(token)).unwrap_or_default()
    }

    /// Text that was held back, once no more tokens come.
    fn flush(&mut self) -> String {
        let tail = self.stream.take().map(Stream::finish).unwrap_or_default();
        let (text, stopped) = self.stop.push(&tail);
        let rest = if stopped { text } else { text + &self.stop.finish() };
        self.text.push_str(&rest);
        rest
    }

    /// The path's result.
    pub fn finish(mut self, finish: Finish) -> Path {
        if !self.stopped {
            self.flush();
        }
        let token_ids = self.tokens.split_off(self.request.ids.len());
        let text = self.limits.tokenizer.is_some().then_some(self.text);
        Path { token_ids, logprobs: self.logprobs, forced: self.forced, text, finish }
    }
}
