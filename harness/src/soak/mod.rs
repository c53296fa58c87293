//! Random traffic on a service with little room, every result compared with what the request gives alone.

mod cases;

use std::collections::BTreeMap;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use wattle_engine::adapter::Adapter;
use wattle_engine::backend::Limits;
use wattle_engine::cache::PAGE;
use wattle_engine::model::Model;
use wattle_engine::{
    AdapterId, AdapterRoom, Client, Control, Engine, EngineOptions, Error as EngineError, Feature, Finish,
    Gate, Generation, Path, Request, Service, ServiceOptions, Tokens,
};

use crate::common::Common;
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::random_adapter::{Random, random_adapter};
use crate::session::Source;
use cases::Case;

/// Requests that are submitted and not looked after yet: more than run and wait, so that the queue overflows.
const OPEN: usize = 14;
/// Sequences, and requests that may wait.
const SEQUENCES: usize = 4;
const QUEUE: usize = 6;
/// Slots for adapters: fewer than there are adapters, and fewer than ids that come and go.
const SLOTS: usize = 2;
const IDS: usize = 3;
/// Pages of KV memory: less than all sequences could have at the same time.
const PAGES: u64 = 2 * SEQUENCES as u64 - 3;
/// Steps after which the device is lost, at most; a request takes six or seven. In short soaks it is lost once or twice.
const LOST_AFTER: u64 = 4000;
/// The ranks of random adapters.
const RANKS: [usize; 4] = [1, 4, 8, 8];

/// What a soak found.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Outcome {
    pub requests: usize,
    /// Ended by themselves.
    pub completed: usize,
    /// Cancelled, dropped, or past their deadline.
    pub cancelled: usize,
    /// Refused: the queue was full, or the request wrong on purpose.
    pub rejected: usize,
    /// Requests that gave anything else than they give alone, or failed.
    pub mismatches: usize,
    /// Pages and sequences of the KV cache that nobody uses and that were not given back.
    pub leaked_pages: usize,
    /// Adapter slots likewise.
    pub leaked_slots: usize,
    /// What happened on the way.
    pub events: BTreeMap<&'static str, u64>,
}

impl Outcome {
    fn count(&mut self, event: &'static str) {
        *self.events.entry(event).or_default() += 1;
    }

    /// Whether everything was as it should be.
    pub fn is_good(&self) -> bool {
        (self.mismatches, self.leaked_pages, self.leaked_slots) == (0, 0, 0)
            && self.completed + self.cancelled + self.rejected == self.requests
    }
}

/// What will be done with a request that was submitted.
enum Fate {
    Wait,
    CancelAfter(usize),
    DropAfter(usize),
    /// The callback cancels it after so many tokens.
    CallbackCancels(usize),
    /// The callback panics, after so many tokens.
    CallbackPanics(usize),
}

struct Open {
    tokens: Tokens,
    case: usize,
    fate: Fate,
}

struct Soak<'s> {
    client: Client,
    random: Random,
    cases: &'s [Case],
    adapters: &'s [Adapter],
    /// The first adapter's id that is never forgotten: requests are switched to it.
    stays: AdapterId,
    /// Other ids, and which adapter each stands for now.
    ids: Vec<(AdapterId, usize)>,
    open: Vec<Open>,
    outcome: Outcome,
}

/// Runs `requests` random requests.
pub(crate) fn soak(requests: usize, seed: u64, common: &Common) -> Result<Outcome> {
    let source = Source::find(common)?;
    let mut random = Random(seed);
    let spec = Model::load(&source.model)?.spec;
    let gate = Gate::above(spec.width, (0..spec.layers as u32).step_by(2), Feature::Mean, 0.0);
    let options = EngineOptions {
        sequences: SEQUENCES,
        context: cases::CONTEXT,
        rows: 24,
        gate: Some(Arc::new(gate)),
        kv_bytes: None,
        ..common.engine_options()
    };
    let alone = EngineOptions { share_prefixes: false, ..options.clone() };
    let mut engine = Engine::load(&source.model, alone)?;
    let kv_bytes = Some(PAGES * engine.page_bytes());
    let adapters = adapters(&source, &mut random)?;
    let count = (requests / 8).clamp(24, 400);
    let cases = {
        let _progress = Progress::spinner(format!("running {count} cases alone"));
        let ids: Vec<AdapterId> =
            adapters.iter().map(|adapter| engine.add_adapter(adapter.clone())).collect::<Result<_, _>>()?;
        cases::pool(count, &mut random, &mut engine, &ids)?
    };
    drop(engine);
    let rank = adapters.iter().map(Adapter::rank).max().unwrap_or(0);
    let options = EngineOptions {
        kv_bytes,
        adapters: AdapterRoom { slots: Some(SLOTS), rank, bytes: None },
        limits: Limits { lost_after: Some(LOST_AFTER.min(3 * requests as u64)), ..options.limits },
        ..options
    };
    let service = Service::start(Engine::load(&source.model, options)?, ServiceOptions { queue: QUEUE })?;
    let (client, outcome) = (service.client(), Outcome { requests, ..Outcome::default() });
    let stays = client.add_adapter(adapters[0].clone())?;
    let mut soak = Soak {
        client,
        random,
        cases: &cases,
        adapters: &adapters,
        stays,
        ids: Vec::new(),
        open: Vec::new(),
        outcome,
    };
    soak.run()?;
    soak.close(service)
}

/// The source's adapter, if it has one, and random ones.
fn adapters(source: &Source, random: &mut Random) -> Result<Vec<Adapter>> {
    let model = Model::load(&source.model)?;
    let given = if source.adapters.is_empty() { None } else { Some(source.load_adapter(&model.spec)?) };
    let made = RANKS.iter().map(|&rank| random_adapter(&model.weights, rank, random.next()));
    Ok(given.into_iter().chain(made).collect())
}

impl Soak<'_> {
    fn run(&mut self) -> Result<()> {
        let progress = Progress::bar("requests", self.outcome.requests);
        for _ in 0..self.outcome.requests {
            progress.step();
            if self.random.one_in(40) {
                self.submit_nonsense()?;
            } else {
                self.submit()?;
            }
            if self.random.one_in(25) {
                self.forget_adapter()?;
            }
            while self.open.len() > OPEN {
                let at = self.random.below(self.open.len() as u64) as usize;
                let open = self.open.swap_remove(at);
                self.settle(open);
            }
        }
        while let Some(open) = self.open.pop() {
            self.settle(open);
        }
        Ok(())
    }

    fn submit(&mut self) -> Result<()> {
        let case = self.random.below(self.cases.len() as u64) as usize;
        let id = self.cases[case].adapter.map(|adapter| self.id(adapter)).transpose()?;
        let mut request = self.cases[case].request(id);
        if self.random.one_in(12) {
            request.deadline = Some(Duration::from_millis(self.random.below(30)));
        }
        let after = self.random.below(6) as usize;
        let watched = self.cases[case].switch.is_some();
        let fate = match (self.random.below(10), watched) {
            (0, false) => Fate::CancelAfter(after),
            (0, true) => Fate::CallbackCancels(after),
            (1, _) => Fate::DropAfter(after),
            (2, _) if self.random.one_in(4) => Fate::CallbackPanics(after),
            _ => Fate::Wait,
        };
        match self.hand_in(request, case, &fate) {
            Ok(tokens) => self.open.push(Open { tokens, case, fate }),
            Err(EngineError::Busy(_)) => {
                self.outcome.rejected += 1;
                self.outcome.count("queue_full");
                // As a user would: somebody's end makes room.
                if let Some(open) = self.open.pop() {
                    self.settle(open);
                }
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Submits a request, with a callback where there is something for it to do.
    fn hand_in(&self, request: Request, case: usize, fate: &Fate) -> Result<Tokens, EngineError> {
        let (switch, stays) = (self.cases[case].switch, self.stays);
        let (cancels, panics) = match fate {
            Fate::CallbackCancels(after) => (Some(*after), None),
            Fate::CallbackPanics(after) => (None, Some(*after)),
            _ => (None, None),
        };
        if switch.is_none() && panics.is_none() {
            return self.client.submit(request);
        }
        let (mut all, mut seen) = (0, BTreeMap::new());
        self.client.submit_with(request, move |event| {
            if panics == Some(all) {
                // Without the message that a panic prints.
                resume_unwind(Box::new("the callback's own mistake"));
            }
            if cancels == Some(all) {
                return Control::Cancel;
            }
            all += 1;
            switch.map_or(Control::Continue, |switch| switch.control(event, &mut seen, stays))
        })
    }

    /// Requests that are wrong, or too long for the cache, have to be refused, and disturb nobody.
    fn submit_nonsense(&mut self) -> Result<()> {
        let (vocab, context) = (self.client.spec().vocab as u32, self.client.spec().context);
        let held = PAGES as usize * PAGE;
        let oversize = context > held + 1 && self.random.one_in(2);
        let bad = if oversize { Request::new(vec![0; held], 2) } else { Request::new(vec![vocab], 2) };
        let tokens = self.client.submit_within(bad, Duration::from_secs(600))?;
        self.outcome.rejected += 1;
        self.outcome.count(if oversize { "oversize" } else { "refused" });
        if tokens.wait().is_ok() {
            self.outcome.mismatches += 1;
        }
        Ok(())
    }

    /// An id that stands for this adapter: there is one, or a new one is loaded, or another's is replaced.
    fn id(&mut self, adapter: usize) -> Result<AdapterId> {
        if let Some((id, _)) = self.ids.iter().find(|(_, content)| *content == adapter) {
            return Ok(*id);
        }
        let new = self.adapters[adapter].clone();
        if self.ids.len() < IDS {
            let id = self.client.add_adapter(new)?;
            self.ids.push((id, adapter));
            self.outcome.count("adapters_loaded");
            return Ok(id);
        }
        let at = self.random.below(IDS as u64) as usize;
        let (id, content) = &mut self.ids[at];
        self.client.swap_adapter(*id, new)?;
        *content = adapter;
        self.outcome.count("adapters_replaced");
        Ok(*id)
    }

    fn forget_adapter(&mut self) -> Result<()> {
        if !self.ids.is_empty() {
            let at = self.random.below(self.ids.len() as u64) as usize;
            self.client.remove_adapter(self.ids.swap_remove(at).0)?;
            self.outcome.count("adapters_unloaded");
        }
        Ok(())
    }

    /// Does with a request what was to be done, and compares what it gave.
    fn settle(&mut self, open: Open) {
        let Open { mut tokens, case, fate } = open;
        match &fate {
            Fate::Wait | Fate::CallbackCancels(_) | Fate::CallbackPanics(_) => {}
            Fate::CancelAfter(count) => {
                tokens.by_ref().take(*count).for_each(drop);
                tokens.cancel();
            }
            Fate::DropAfter(count) => {
                // With a callback no token comes here: it is dropped at once.
                let count = if self.cases[case].switch.is_some() { 0 } else { *count };
                tokens.by_ref().take(count).for_each(drop);
                self.outcome.cancelled += 1;
                return self.outcome.count("dropped");
            }
        }
        match tokens.wait() {
            Ok(generation) => self.compare(case, &generation),
            Err(EngineError::Value { name, .. })
                if name == "callback" && matches!(fate, Fate::CallbackPanics(_)) =>
            {
                self.outcome.cancelled += 1;
                self.outcome.count("panicked");
            }
            Err(error) => {
                tracing::error!(%error, case, "a request failed");
                self.outcome.completed += 1;
                self.outcome.mismatches += 1;
                self.outcome.count("errors");
            }
        }
    }

    fn compare(&mut self, case: usize, generation: &Generation) {
        let case = &self.cases[case];
        let ended = |finish| generation.paths.iter().any(|path| path.finish == finish);
        let cut = ended(Finish::Cancelled) || ended(Finish::Deadline);
        let spared = generation.vote.as_ref().map_or(0, |tally| tally.spared);
        let same = |path: &Path, alone: &Path| {
            let whole = path.token_ids.len() == alone.token_ids.len() && path.finish == alone.finish;
            let prefix =
                alone.token_ids.starts_with(&path.token_ids) && alone.logprobs.starts_with(&path.logprobs);
            prefix && (whole || cut || (spared > 0 && path.finish == Finish::Stop))
        };
        let mut good = generation.paths.len() == case.alone.len();
        good &= generation.paths.iter().zip(&case.alone).all(|(path, alone)| same(path, alone));
        if let (Some(tally), false) = (&generation.vote, cut) {
            good &= tally.winner().map(|winner| &winner.text) == case.winner.as_ref();
        }
        let outcome = &mut self.outcome;
        *(if cut { &mut outcome.cancelled } else { &mut outcome.completed }) += 1;
        outcome.mismatches += usize::from(!good);
        let paths = &generation.paths;
        let happened = [
            ("cancelled", ended(Finish::Cancelled)),
            ("deadlines", ended(Finish::Deadline)),
            ("votes_ended_early", spared > 0),
            ("closing_prompts", paths.iter().any(|path| !path.forced.is_empty())),
            ("several_paths", paths.len() > 1),
            ("switches", case.switch.is_some_and(|switch| paths.iter().any(|path| switch.is_reached(path)))),
            ("gates_closed", generation.report.lora_layers_closed > 0),
        ];
        happened.iter().filter(|(_, happened)| *happened).for_each(|(name, _)| outcome.count(name));
    }

    /// Stops the service, and looks at what is left.
    fn close(mut self, service: Service) -> Result<Outcome> {
        let lost = || Error::Failed("the engine's thread panicked".into());
        let engine = service.stop().ok_or_else(lost)?;
        let (load, counts, pages) = (self.client.load(), engine.adapter_counts(), engine.pages());
        self.outcome.leaked_slots = engine.adapter_slots().1[1];
        self.outcome.leaked_pages = pages.used + engine.sequences_held();
        let events = &mut self.outcome.events;
        events.insert("steps", load.steps);
        events.insert("shared_positions", load.shared_positions);
        events.insert("positions_found", pages.found);
        events.insert("pages_copied", pages.copied);
        events.insert("pages_merged", pages.merged);
        events.insert("pages_evicted", pages.evicted);
        events.insert("device_restarts", load.restarts);
        events.insert("slots_filled", counts.loads);
        events.insert("slots_evicted", counts.evictions);
        Ok(self.outcome)
    }
}
