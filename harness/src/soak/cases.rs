//! What a soak may ask for: a fixed pool of cases, drawn from a seed, so that every case meets many neighbours and is
//! computed alone only once.

use std::collections::BTreeMap;

use wattle_engine::{
    ActiveFrom, AdapterId, Closing, Control, Engine, Event, LayerMask, Lora, Path, Priority, Request,
    Sampling, VoteRule,
};

use crate::error::Result;
use crate::random_adapter::Random;
use crate::tasks::MARK;

/// Prompts begin with the same few texts, so that they share prefixes.
const TEXTS: usize = 4;
/// Tokens of a prompt at most: more than a page.
const PROMPT: usize = 100;
/// New tokens of a path at most.
const NEW: usize = 24;

/// Positions that any case needs, of a model that has so many.
pub(super) const CONTEXT: usize = PROMPT + NEW;

/// Tokens of a prompt at most, for a model of this context.
fn longest(context: usize) -> usize {
    PROMPT.min(context.saturating_sub(NEW)).max(2)
}

/// A path goes on otherwise.
#[derive(Clone, Copy)]
pub(super) struct Switch {
    /// After so many of its tokens.
    after: usize,
    /// To the adapter that always stays, or to none.
    adapted: bool,
    layers: LayerMask,
}

impl Switch {
    /// Whether a path had tokens enough to be switched.
    pub fn is_reached(self, path: &Path) -> bool {
        path.token_ids.len() > self.after
    }

    /// What an observer says that sees a path's tokens; `seen` counts them, `stays` is that adapter's id.
    pub fn control(self, event: &Event<'_>, seen: &mut BTreeMap<u32, usize>, stays: AdapterId) -> Control {
        let count = seen.entry(event.path).or_default();
        *count += 1;
        let lora = if self.adapted { Lora { layers: self.layers, ..Lora::new(stays) } } else { Lora::BASE };
        if *count == self.after { Control::Switch(lora) } else { Control::Continue }
    }
}

/// A request, and what it gives alone.
pub(super) struct Case {
    /// Without an adapter's id: the adapter has another one in every engine.
    request: Request,
    /// Which of the soak's adapters it runs with.
    pub adapter: Option<usize>,
    pub switch: Option<Switch>,
    /// Of a fresh engine in which nothing else runs.
    pub alone: Vec<Path>,
    /// The answer that wins there.
    pub winner: Option<String>,
}

impl Case {
    /// The request, with its adapter under this id.
    pub fn request(&self, id: Option<AdapterId>) -> Request {
        let lora = Lora { adapter: id, ..self.request.lora };
        self.request.clone().with_lora(lora)
    }
}

/// Draws `count` cases, and runs each alone on `engine`, in which `ids` are the adapters, of which the first stays.
pub(super) fn pool(
    count: usize,
    random: &mut Random,
    engine: &mut Engine,
    ids: &[AdapterId],
) -> Result<Vec<Case>> {
    let vocab = engine.spec().vocab as u64;
    let longest = longest(engine.spec().context);
    let mut text = || -> Vec<u32> { (0..longest).map(|_| random.below(vocab) as u32).collect() };
    let texts: Vec<Vec<u32>> = (0..TEXTS).map(|_| text()).collect();
    let has_text = engine.tokenizer().is_some();
    let mut cases = Vec::new();
    for _ in 0..count {
        let adapter = Some(random.below(ids.len() as u64 + 1) as usize).filter(|&index| index < ids.len());
        let request = draw(random, &texts, adapter.is_some(), has_text);
        let switch = random.one_in(4).then(|| Switch {
            after: 1 + random.below(NEW as u64 / 2) as usize,
            adapted: !random.one_in(3),
            layers: if random.one_in(3) { LayerMask::of([1, 2]) } else { LayerMask::ALL },
        });
        let mut case = Case { request, adapter, switch, alone: Vec::new(), winner: None };
        let mut request = case.request(adapter.map(|index| ids[index]));
        if let Some(rule) = &mut request.vote {
            // Which paths an early end spares depends on who else runs; what they would have said does not.
            rule.early = false;
        }
        let mut seen = BTreeMap::new();
        let generation = engine.stream(&request, |event| match switch {
            Some(switch) => switch.control(event, &mut seen, ids[0]),
            None => Control::Continue,
        })?;
        case.winner = generation.vote.and_then(|tally| Some(tally.winner()?.text.clone()));
        case.alone = generation.paths;
        cases.push(case);
    }
    Ok(cases)
}

fn draw(random: &mut Random, texts: &[Vec<u32>], adapted: bool, has_text: bool) -> Request {
    let length = 1 + random.below(texts[0].len() as u64) as usize;
    let new = 1 + random.below(NEW as u64) as usize;
    let from = match random.below(3) {
        0 => ActiveFrom::Adapter,
        1 => ActiveFrom::Generated,
        _ => ActiveFrom::Position(random.below(length as u64) as usize),
    };
    let layers = if random.one_in(3) { LayerMask::of([0, 2, 3]) } else { LayerMask::ALL };
    let sampled = Sampling {
        temperature: 0.8,
        top_k: 40,
        top_p: 0.95,
        penalty: if random.one_in(2) { 1.2 } else { 1.0 },
        seed: random.below(8),
    };
    let text = &texts[random.below(texts.len() as u64) as usize];
    let closes = new > 6 && random.one_in(4);
    Request {
        lora: if adapted {
            Lora { adapter: None, layers, from, gated: random.one_in(3) }
        } else {
            Lora::BASE
        },
        sampling: if random.one_in(3) { Sampling::GREEDY } else { sampled },
        paths: if random.one_in(3) { 2 + random.below(4) as u32 } else { 1 },
        closing: closes.then(|| Closing { ids: text[..2].to_vec(), answer_tokens: 3 }),
        // Random texts have no marker: half of the votes are over whole texts, few of which agree.
        vote: (has_text && random.one_in(3)).then(|| VoteRule {
            marker: if random.one_in(2) { MARK.into() } else { String::new() },
            early: true,
        }),
        ignore_eos: random.one_in(2),
        priority: [Priority::Low, Priority::Normal, Priority::High][random.below(3) as usize],
        ..Request::new(&text[..length], new)
    }
}

impl Random {
    /// Below `end`, which is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    /// Yes, once in so many times.
    pub fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }
}
