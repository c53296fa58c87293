//! The engine that integrators embed.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use wattle_shaders::{NO_INDEX, OUTSIDE_LAYERS, Row, Sample};

use crate::adapter::{self, ActivationRule, Adapter, Factors};
use crate::backend::{Backend, Doors, Step};
use crate::error::{Error, Result};
use crate::model::{Model, Positions, Spec, Weights};
use crate::options::EngineOptions;
use crate::plan::{LoraCapacity, Plan};
use crate::request::{ActiveFrom, AdapterId, Control, Event, Generation, Lora, Request};
use crate::runtime::{Needs, RanStep, Runtime};
use crate::schedule::{Batch, Job, PathLimits, ResolvedLora};
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
    tokenizer: Option<Tokenizer>,
    chat_template: Option<ChatTemplate>,
    options: EngineOptions,
    /// Adapters by id; the index of the slot is kept beside.
    adapters: BTreeMap<AdapterId, (usize, Adapter)>,
    next_adapter: u32,
    runtime: Runtime,
}

impl Engine {
    /// Loads an unmodified Hugging Face directory: config.json, safetensors, and a tokenizer if there is one.
    pub fn load(dir: impl AsRef<Path>, options: EngineOptions) -> Result<Self> {
        let dir = dir.as_ref();
        let model = Model::load(dir)?;
        let (tokenizer, chat_template) = match Tokenizer::from_dir(dir) {
            Ok(tokenizer) => (Some(tokenizer), ChatTemplate::from_dir(dir)?),
            Err(tokenizer::Error::Missing(_)) => (None, None),
            Err(error) => return Err(error.into()),
        };
        Ok(Self { tokenizer, chat_template, ..Self::from_model(model, options)? })
    }

    /// An engine on a model that is in memory already, without a tokenizer.
    pub fn from_model(mut model: Model, options: EngineOptions) -> Result<Self> {
        if let Some(quant) = options.quant {
            model = model.quantized(quant)?;
        }
        let context = options.context.clamp(1, model.spec.context);
        let runtime = Runtime::new(&model, &options, Needs { context, lora: LoraCapacity::default() }, &[])?;
        let (adapters, next_adapter) = (BTreeMap::new(), 0);
        Ok(Self { model, tokenizer: None, chat_template: None, options, adapters, next_adapter, runtime })
    }

    /// Loads an unmodified PEFT directory; the adapter is never merged into the base. `scale` multiplies its effect.
    pub fn load_adapter(&mut self, dir: impl AsRef<Path>, scale: f32) -> Result<AdapterId> {
        self.load_joined_adapter(&[(dir.as_ref(), scale)])
    }

    /// Loads several adapters, each with its scale, as one: their effects add up.
    pub fn load_joined_adapter(&mut self, adapters: &[(&Path, f32)]) -> Result<AdapterId> {
        let loaded: Vec<(Adapter, f32)> = adapters
            .iter()
            .map(|&(dir, scale)| Ok((Adapter::load(dir, &self.model.spec)?, scale)))
            .collect::<Result<_>>()?;
        let parts: Vec<(&Adapter, f32)> = loaded.iter().map(|(adapter, scale)| (adapter, *scale)).collect();
        self.add_adapter(adapter::join(&parts)?)
    }

    /// Adds an adapter that is in memory already.
    pub fn add_adapter(&mut self, adapter: Adapter) -> Result<AdapterId> {
        let used: Vec<usize> = self.adapters.values().map(|(slot, _)| *slot).collect();
        let slot = (0..).find(|slot| !used.contains(slot)).unwrap_or(0);
        let factors = Arc::clone(&adapter.factors);
        let id = AdapterId(self.next_adapter);
        self.next_adapter += 1;
        self.adapters.insert(id, (slot, adapter));
        let result = self.make_room(self.options.context.min(self.model.spec.context));
        let result = result.and_then(|()| self.runtime.backend.set_slot(slot, Some(factors)));
        if let Err(error) = result {
            self.adapters.remove(&id);
            return Err(error);
        }
        Ok(id)
    }

    /// Forgets an adapter. Requests can no longer name it.
    pub fn remove_adapter(&mut self, id: AdapterId) -> Result<()> {
        let (slot, _) = self.adapters.remove(&id).ok_or_else(|| Error::value("adapter", "not loaded"))?;
        self.runtime.backend.set_slot(slot, None)
    }

    /// The model's shape and rules.
    pub fn spec(&self) -> &Spec {
        &self.model.spec
    }

    /// The tokenizer, if the model's directory has one.
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        self.tokenizer.as_ref()
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

    /// The steps that were run since the last call, if [`EngineOptions::keep_steps`] says so; ranks are those of the
    /// adapters that are loaded now.
    pub fn take_steps(&mut self) -> Vec<RanStep> {
        let mut steps = self.runtime.steps.as_mut().map(std::mem::take).unwrap_or_default();
        let slots = self.adapters.values().map(|(slot, _)| slot + 1).max().unwrap_or(0);
        let mut ranks = vec![0; slots];
        for (slot, adapter) in self.adapters.values() {
            ranks[*slot] = adapter.rank() as u32;
        }
        steps.iter_mut().for_each(|step| step.shape.ranks.clone_from(&ranks));
        steps
    }

    /// The plan with LoRA as it costs with this adapter: places where it has no factors cost nothing.
    pub fn priced_plan(&self, adapter: AdapterId) -> Option<Plan> {
        let (_, adapter) = self.adapters.get(&adapter)?;
        Some(self.runtime.adapted_plan()?.priced_for(&adapter.factors))
    }

    /// Runs ops of the plan without LoRA by themselves, with the tensors that they read: for measuring them.
    ///
    /// # Errors
    /// Those of [`Backend::run`].
    pub fn run_ops(&mut self, step: &Step, doors: &Doors) -> Result<()> {
        self.runtime.run_base(step, doors)
    }

    /// The highest rank of an adapter's factors; 0 for one that is not loaded.
    pub fn adapter_rank(&self, adapter: AdapterId) -> usize {
        self.adapters.get(&adapter).map_or(0, |(_, adapter)| adapter.rank())
    }

    /// The model's weights.
    pub fn weights(&self) -> &Weights {
        &self.model.weights
    }

    /// The device underneath, for timings, memory and counters.
    pub fn backend(&mut self) -> &mut dyn Backend {
        &mut *self.runtime.backend
    }

    /// Text → token ids, with the special tokens that the model expects around a text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let none =
            || Error::value("prompt", "the model's directory has no tokenizer: give token ids instead");
        Ok(self.tokenizer.as_ref().ok_or_else(none)?.encode(text, true)?)
    }

    /// Runs one request to its end.
    pub fn generate(&mut self, request: &Request) -> Result<Generation> {
        self.stream(request, |_| Control::Continue)
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

    /// Runs several requests, as many at a time as there are sequences. An unusable request fails them all, before
    /// anything runs.
    pub fn generate_all(&mut self, requests: &[Request]) -> Result<Vec<Generation>> {
        self.stream_all(requests, |_| Control::Continue)
    }

    /// [`Self::generate_all`] with an observer.
    pub fn stream_all(
        &mut self,
        requests: &[Request],
        mut observer: impl FnMut(&Event<'_>) -> Control,
    ) -> Result<Vec<Generation>> {
        let mut context = 0;
        for request in requests {
            context = context.max(self.check(request)?);
        }
        self.make_room(context)?;
        let (adapters, tokenizer, spec) = (&self.adapters, self.tokenizer.as_ref(), &self.model.spec);
        let job = |(index, request)| job(index, request, adapters, tokenizer, spec);
        let jobs = requests.iter().enumerate().map(job).collect::<Result<Vec<_>>>()?;
        let mut batch = Batch::new(jobs, self.runtime.capacity.sequences, spec.layers);
        let resolve = |lora: &Lora| resolve(lora, adapters, None).ok();
        batch.run(&mut self.runtime, &resolve, &mut observer)?;
        let mut generations = batch.finish();
        if self.options.timing {
            let timings = self.runtime.backend.take_timings();
            generations.iter_mut().for_each(|generation| generation.report.timings = timings.clone());
        }
        Ok(generations)
    }

    /// The logits after each position: f32 \[ids, vocab\].
    pub fn logits(&mut self, ids: &[u32], lora: &Lora) -> Result<Vec<f32>> {
        let request = Request { lora: *lora, ..Request::new(ids, 0) };
        let context = self.check(&request)?;
        self.make_room(context)?;
        let lora = resolve(lora, &self.adapters, Some(&request))?;
        self.runtime.backend.reset_sequence(0)?;
        let long = ids.len() > original_context(&self.model.spec);
        let mut logits = Vec::new();
        let reason = |_| Error::value("ids", "the logits of so many tokens do not fit the memory");
        logits.try_reserve_exact(ids.len().saturating_mul(self.model.spec.vocab)).map_err(reason)?;
        let chunk = self.runtime.capacity.samples.min(self.runtime.capacity.rows);
        for (start, chunk_ids) in (0..).step_by(chunk).zip(ids.chunks(chunk)) {
            let step = logits_step(start, chunk_ids, &lora, long);
            logits.extend(self.runtime.logits(&step)?);
        }
        Ok(logits)
    }

    /// Checks everything about a request that can be wrong; returns the positions that it needs.
    fn check(&self, request: &Request) -> Result<usize> {
        let (spec, prompt) = (&self.model.spec, request.ids.len());
        if prompt == 0 {
            return Err(Error::value("prompt", "it has no tokens; at least one is needed"));
        }
        if prompt > spec.context {
            let reason = format!("{prompt} tokens are longer than the model's context of {}", spec.context);
            return Err(Error::value("prompt", reason));
        }
        if let Some(id) = request.ids.iter().find(|&&id| id as usize >= spec.vocab) {
            let reason = format!("{id} is no token of the model: ids are below {}", spec.vocab);
            return Err(Error::value("token id", reason));
        }
        if !(1..=1024).contains(&request.paths) {
            return Err(Error::value("paths", format!("{} is not between 1 and 1024", request.paths)));
        }
        if !request.stop.is_empty() && self.tokenizer.is_none() {
            return Err(Error::value(
                "stop",
                "stop texts need a tokenizer, and the model's directory has none",
            ));
        }
        request.sampling.check()?;
        resolve(&request.lora, &self.adapters, Some(request))?;
        Ok(prompt.saturating_add(request.max_new_tokens).min(spec.context))
    }

    /// Rebuilds the runtime when the context or the adapters need more room than it has.
    fn make_room(&mut self, context: usize) -> Result<()> {
        let slots = self.adapters.values().map(|(slot, _)| slot + 1).max().unwrap_or(0);
        let rank = self.adapters.values().map(|(_, adapter)| adapter.rank()).max().unwrap_or(0);
        let outside = self.adapters.values().any(|(_, adapter)| adapter.has_factors_outside_layers());
        let needs = Needs { context, lora: LoraCapacity { slots, rank, outside } };
        if self.runtime.covers(&needs) {
            return Ok(());
        }
        let mut factors: Vec<Option<Arc<Factors>>> = vec![None; slots];
        for (slot, adapter) in self.adapters.values() {
            factors[*slot] = Some(Arc::clone(&adapter.factors));
        }
        let needs = self.runtime.grown(&needs);
        let steps = self.runtime.steps.take();
        self.runtime = Runtime::new(&self.model, &self.options, needs, &factors)?;
        self.runtime.steps = steps;
        Ok(())
    }
}

/// Tokens above which longrope uses its long factors; without longrope no sequence has so many.
fn original_context(spec: &Spec) -> usize {
    match &spec.positions {
        Positions::Rope(rope) => rope.long.as_ref().map_or(usize::MAX, |long| long.original_context),
        Positions::Learned { .. } => usize::MAX,
    }
}

type Adapters = BTreeMap<AdapterId, (usize, Adapter)>;

fn job<'a>(
    index: usize,
    request: &'a Request,
    adapters: &Adapters,
    tokenizer: Option<&'a Tokenizer>,
    spec: &Spec,
) -> Result<Job<'a>> {
    let lora = resolve(&request.lora, adapters, Some(request))?;
    let original_context = original_context(spec);
    let limits = PathLimits { lora, context: spec.context, original_context, tokenizer };
    let eos = if request.ignore_eos { Vec::new() } else { spec.eos.clone() };
    Ok(Job { index, request, limits, eos })
}

/// Looks up the slot, and from which position on the adapter is active; without a request (a switch in the middle)
/// it is active at once.
fn resolve(lora: &Lora, adapters: &Adapters, request: Option<&Request>) -> Result<ResolvedLora> {
    let Some(id) = lora.adapter else {
        return Ok(ResolvedLora { slot: NO_INDEX, layers: lora.layers, from: 0 });
    };
    let none = || Error::value("adapter", "no adapter of this id is loaded");
    let (slot, adapter) = adapters.get(&id).ok_or_else(none)?;
    let from = match (lora.from, request) {
        (ActiveFrom::Position(from), _) => from,
        (ActiveFrom::Generated, Some(request)) => request.ids.len(),
        (ActiveFrom::Adapter, Some(request)) => match &adapter.rule {
            ActivationRule::Always => 0,
            rule @ ActivationRule::AfterInvocation(_) => {
                rule.first_active(&request.ids).unwrap_or(usize::MAX)
            }
        },
        (_, None) => 0,
    };
    // A mask of some layers leaves out what lies outside the layers, as PEFT's layers_to_transform does.
    let layers = lora.layers;
    debug_assert!(layers.has(OUTSIDE_LAYERS) || layers != wattle_shaders::LayerMask::ALL);
    Ok(ResolvedLora { slot: *slot as u32, layers, from })
}

/// A chunk of a prompt whose logits are all wanted.
fn logits_step(start: usize, ids: &[u32], lora: &ResolvedLora, long: bool) -> Step {
    let mut step = Step::default();
    for (index, &token) in ids.iter().enumerate() {
        let position = start + index;
        let flags = if long { wattle_shaders::LONG_ROPE } else { 0 };
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
