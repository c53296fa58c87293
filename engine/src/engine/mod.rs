//! The engine that integrators embed.

mod adapters;
mod host;
mod orders;

pub(crate) use adapters::{Preparer, Ready, read as read_adapters};

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use wattle_policy::LoraPolicy;
use wattle_shaders::{GATED, LONG_ROPE, Row, Sample};

use crate::adapter::Residency;
use crate::backend::{Backend, Step};
use crate::cache::Room;
use crate::error::{Error, Result};
use crate::generation::{Control, Event, Generation};
use crate::model::{Model, Spec, Weights};
use crate::options::{BackendChoice, EngineOptions};
use crate::plan::Plan;
use crate::request::{Lora, Request};
use crate::runtime::{RanStep, Runtime};
use crate::schedule::{Host, Order, ResolvedLora, Scheduler, slot_for};
use crate::tokenizer::{self, ChatTemplate, Tokenizer};

/// A model on a device, with its adapters.
///
/// No global state: engines are independent, can be sent to another thread, and free everything when dropped.
///
/// ```
/// use wattle_engine::{ActiveFrom, BackendChoice, Engine, EngineOptions, Lora, Request};
///
/// # fn main() -> wattle_engine::Result<()> {
/// let options = EngineOptions { backend: BackendChoice::Cpu, ..EngineOptions::default() };
/// let mut engine = Engine::load("../models/sprout", options)?;
/// let reason = engine.load_adapter("../models/sprout/reason", 1.0)?;
/// let prompt = engine.encode("Tom has 40 cups. On Monday Ann gives Tom 12 cups. How many cups does Tom have now?")?;
/// let lora = Lora { from: ActiveFrom::Generated, ..Lora::new(reason) };
/// let generation = engine.generate(&Request::new(prompt, 48).with_lora(lora))?;
/// assert!(generation.paths[0].text.as_deref().is_some_and(|text| text.contains("Answer:")));
/// # Ok(())
/// # }
/// ```
pub struct Engine {
    model: Model,
    tokenizer: Option<Arc<Tokenizer>>,
    chat_template: Option<ChatTemplate>,
    options: EngineOptions,
    adapters: Residency,
    policy: Option<Box<dyn LoraPolicy>>,
    runtime: Runtime,
    /// Sequences of the device that running paths hold.
    held: BTreeSet<u32>,
    /// How often the runtime was made anew: schedulers then encode again what runs.
    rebuilds: u64,
    /// The adapters that there was last found to be room for, see [`Residency::changes`].
    room_for: Option<u64>,
    times: StepTimes,
}

/// Where the time of an engine's steps went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepTimes {
    /// Steps.
    pub steps: u64,
    /// From their beginning to their end, observers included.
    pub total: Duration,
    /// In the backend: running, or waiting for the device. The rest is the scheduler's own.
    pub device: Duration,
}

impl Engine {
    /// Loads an unmodified Hugging Face directory: config.json, safetensors, and a tokenizer if there is one.
    pub fn load(dir: impl AsRef<Path>, options: EngineOptions) -> Result<Self> {
        let dir = dir.as_ref();
        let model = Model::load(dir)?;
        let (tokenizer, chat_template) = match Tokenizer::from_dir(dir) {
            Ok(tokenizer) => (Some(Arc::new(tokenizer)), ChatTemplate::from_dir(dir)?),
            Err(tokenizer::Error::Missing(_)) => (None, None),
            Err(error) => return Err(error.into()),
        };
        Ok(Self { tokenizer, chat_template, ..Self::from_model(model, options)? })
    }

    /// An engine on a model that is in memory already, without a tokenizer.
    pub fn from_model(mut model: Model, mut options: EngineOptions) -> Result<Self> {
        if let Some(quant) = options.quant {
            model = model.quantized(quant)?;
        }
        if let Some(gate) = &options.gate {
            gate.check(&model.spec)?;
        }
        let context = options.context.clamp(1, model.spec.context);
        let mut adapters = Residency::default();
        let needs = adapters::needs(&adapters, &model, &options, context)?;
        let runtime = Runtime::new(&model, &options, needs, &[], None)?;
        if runtime.backend.kind() == "cpu" {
            // Looking for a GPU takes tens of milliseconds: not again whenever a request or adapter needs more room.
            options.backend = BackendChoice::Cpu;
        }
        adapters.resize(needs.lora.slots);
        let (tokenizer, chat_template, policy) = (None, None, None);
        let (held, rebuilds, times) = (BTreeSet::new(), 0, StepTimes::default());
        Ok(Self {
            model,
            tokenizer,
            chat_template,
            options,
            adapters,
            policy,
            runtime,
            held,
            rebuilds,
            room_for: None,
            times,
        })
    }

    /// Asks a policy about every request from now on; `None` leaves requests as they are.
    pub fn set_policy(&mut self, policy: Option<Box<dyn LoraPolicy>>) {
        self.policy = policy;
    }

    /// The model's shape and rules.
    pub fn spec(&self) -> &Spec {
        &self.model.spec
    }

    /// The tokenizer, if the model's directory has one.
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        self.tokenizer.as_deref()
    }

    /// The chat template, if the model's directory has one.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.chat_template.as_ref()
    }

    /// The plan that runs without LoRA.
    pub fn plan(&self) -> &Arc<Plan> {
        self.runtime.base_plan()
    }

    /// The plan that runs with LoRA, once an adapter is loaded.
    pub fn adapted_plan(&self) -> Option<&Arc<Plan>> {
        self.runtime.adapted_plan()
    }

    /// Where the time of all steps so far went.
    pub fn step_times(&self) -> StepTimes {
        self.times
    }

    /// The model's weights.
    pub fn weights(&self) -> &Weights {
        &self.model.weights
    }

    /// The steps that were run since the last call, if [`EngineOptions::keep_steps`] says so.
    pub fn take_steps(&mut self) -> Vec<RanStep> {
        self.runtime.steps.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// The device underneath, for timings, memory and counters.
    pub fn backend(&mut self) -> &mut dyn Backend {
        &mut *self.runtime.backend
    }

    /// Text → token ids, with the special tokens that the model expects around a text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        encode(self.tokenizer.as_deref(), text)
    }

    pub(crate) fn shared_tokenizer(&self) -> Option<Arc<Tokenizer>> {
        self.tokenizer.clone()
    }

    /// Runs one request to its end.
    pub fn generate(&mut self, request: &Request) -> Result<Generation> {
        self.stream(request, |_| Control::Continue)
    }

    /// Whether a request can be run, without running it.
    ///
    /// # Errors
    /// [`Error::Value`], which names what is not acceptable.
    pub fn check(&self, request: &Request) -> Result<()> {
        self.checked(request).map(drop)
    }

    /// Runs one request; the observer sees each token as it comes and can stop it or switch its adapter.
    ///
    /// ```
    /// use wattle_engine::{BackendChoice, Control, Engine, EngineOptions, Finish, Request};
    ///
    /// # fn main() -> wattle_engine::Result<()> {
    /// let options = EngineOptions { backend: BackendChoice::Cpu, ..EngineOptions::default() };
    /// let mut engine = Engine::load("../models/sprout", options)?;
    /// let request = Request::new(engine.encode("Tom has 40 cups.")?, 20);
    /// let mut tokens = Vec::new();
    /// let generation = engine.stream(&request, |event| {
    ///     tokens.push(event.token);
    ///     if tokens.len() == 3 { Control::Stop } else { Control::Continue }
    /// })?;
    /// assert_eq!((&generation.paths[0].token_ids, generation.paths[0].finish), (&tokens, Finish::Stop));
    /// # Ok(())
    /// # }
    /// ```
    pub fn stream(
        &mut self,
        request: &Request,
        observer: impl FnMut(&Event<'_>) -> Control,
    ) -> Result<Generation> {
        let mut generations = self.stream_all(std::slice::from_ref(request), observer)?;
        generations.pop().ok_or_else(|| Error::value("request", "nothing was run"))
    }

    /// Runs several requests, as many at a time as there are sequences: all or none. An unusable request fails them before
    /// anything runs, one that fails on its way ends the others; a [`crate::Service`] answers each on its own.
    pub fn generate_all(&mut self, requests: &[Request]) -> Result<Vec<Generation>> {
        self.stream_all(requests, |_| Control::Continue)
    }

    /// [`Self::generate_all`] with an observer.
    pub fn stream_all(
        &mut self,
        requests: &[Request],
        mut observer: impl FnMut(&Event<'_>) -> Control,
    ) -> Result<Vec<Generation>> {
        let orders = requests.iter().map(|request| self.order(request)).collect::<Result<Vec<_>>>()?;
        let positions = orders.iter().map(Order::positions).max();
        self.make_room(positions.unwrap_or(0))?;
        let started = Instant::now();
        let now = || started.elapsed();
        let mut scheduler = self.scheduler();
        for order in orders {
            scheduler.submit(order, Duration::ZERO);
        }
        // A panic of the observer goes on once nothing is under way any more.
        let mut panic = None;
        let mut guarded = |event: &Event<'_>| {
            if panic.is_some() {
                return Control::Cancel;
            }
            let control = catch_unwind(AssertUnwindSafe(|| observer(event)));
            control.unwrap_or_else(|payload| {
                panic = Some(payload);
                Control::Cancel
            })
        };
        let outcome = self.run(&mut scheduler, &now, &mut guarded);
        if let Some(payload) = panic {
            resume_unwind(payload);
        }
        let mut generations = outcome?;
        if self.options.timing {
            let timings = self.runtime.backend.take_timings();
            generations.iter_mut().for_each(|generation| generation.report.timings = timings.clone());
        }
        Ok(generations)
    }

    /// Runs everything to its end, or to the first error; then nothing is under way.
    fn run(
        &mut self,
        scheduler: &mut Scheduler,
        now: &dyn Fn() -> Duration,
        observer: &mut dyn FnMut(&Event<'_>) -> Control,
    ) -> Result<Vec<Generation>> {
        let mut done = Vec::new();
        let mut more = true;
        while more {
            let step = self.step(scheduler, now, observer);
            let mut failed = None;
            for ended in scheduler.take_done() {
                match ended.result {
                    Ok(generation) => done.push((ended.job, generation)),
                    Err(error) => failed = failed.or(Some(error)),
                }
            }
            more = match (step, failed) {
                (Ok(more), None) => more,
                (Err(error), _) | (_, Some(error)) => {
                    let ended = || Error::value("request", "another one failed");
                    scheduler.fail_all(ended, &mut self.host());
                    return Err(error);
                }
            };
        }
        done.sort_by_key(|(job, _)| *job);
        Ok(done.into_iter().map(|(_, generation)| generation).collect())
    }

    /// The logits after each position: f32 \[ids, vocab\].
    pub fn logits(&mut self, ids: &[u32], lora: &Lora) -> Result<Vec<f32>> {
        let request = Request { lora: *lora, ..Request::new(ids, 0) };
        let order = self.checked(&request)?;
        self.make_room(order.limits.tokens(&request))?;
        let mut host = self.host();
        let none = || Error::value("adapter", "no slot is free");
        let slot = slot_for(&order.lora, &mut host)?.ok_or_else(none)?;
        let logits =
            self.logits_in(ids, &order.lora.in_slot(slot), ids.len() > order.limits.original_context);
        slot.into_iter().for_each(|slot| self.host().give_slot(slot));
        logits
    }

    fn logits_in(&mut self, ids: &[u32], lora: &ResolvedLora, long: bool) -> Result<Vec<f32>> {
        let room = Room { positions: ids.len(), anew: false };
        self.runtime.has_room(ids.len())?;
        self.runtime.start(0, [], room)?;
        let logits = self.all_logits(ids, lora, long);
        self.runtime.release(0).and(logits)
    }

    /// The logits of sequence 0, which has begun.
    fn all_logits(&mut self, ids: &[u32], lora: &ResolvedLora, long: bool) -> Result<Vec<f32>> {
        let mut logits = Vec::new();
        let reason = |_| Error::value("ids", "the logits of so many tokens do not fit the memory");
        logits.try_reserve_exact(ids.len().saturating_mul(self.model.spec.vocab)).map_err(reason)?;
        let chunk = self.runtime.capacity.samples.min(self.runtime.capacity.rows);
        for (start, chunk_ids) in (0..).step_by(chunk).zip(ids.chunks(chunk)) {
            let step = logits_step(start, chunk_ids, lora, long);
            logits.extend(self.runtime.logits(&step)?);
        }
        Ok(logits)
    }
}

/// Text → token ids, where there is a tokenizer.
pub(crate) fn encode(tokenizer: Option<&Tokenizer>, text: &str) -> Result<Vec<u32>> {
    let none = || Error::value("prompt", "the model's directory has no tokenizer: give token ids instead");
    Ok(tokenizer.ok_or_else(none)?.encode(text, true)?)
}

/// A chunk of a prompt whose logits are all wanted.
fn logits_step(start: usize, ids: &[u32], lora: &ResolvedLora, long: bool) -> Step {
    let mut step = Step::default();
    for (index, &token) in ids.iter().enumerate() {
        let position = start + index;
        let flags = if long { LONG_ROPE } else { 0 } | if lora.gated { GATED } else { 0 };
        let mask = lora.mask_at(position).words();
        step.rows.push(Row { slot: lora.slot, lora: mask, flags, ..Row::prompt(token, position as u32, 0) });
        step.samples.push(Sample {
            row: index as u32,
            top_p: 1.0,
            penalty: 1.0,
            ..bytemuck::Zeroable::zeroed()
        });
    }
    step
}
