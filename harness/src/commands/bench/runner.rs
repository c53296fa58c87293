//! Measures prompts and decoding on one engine.

use std::sync::Arc;
use std::time::{Duration, Instant};

use wattle_engine::adapter::Target;
use wattle_engine::cache::PAGE;
use wattle_engine::model::{Model, Weights};
use wattle_engine::plan::Plan;
use wattle_engine::{AdapterId, Control, Engine, EngineOptions, Lora, Precision, Request};
use wattle_policy::{CostSource, OpCost, StepShape};

use super::record::Line;
use crate::error::{Error, Result};
use crate::layers::Layers;
use crate::meter::{Meter, Ratio, median_and_spread};
use crate::random_adapter::{Random, random_adapter};
use crate::report::{peak_bytes, quant_name};

/// What is the same in all tests of a runner.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Prompt tokens.
    pub prompt: usize,
    /// New tokens per path.
    pub new: usize,
    /// Repetitions, after one that is not counted.
    pub repetitions: u32,
    /// Positions in the cache before decoding begins.
    pub depth: usize,
    /// Rank of the adapters.
    pub rank: u32,
    /// Layers in which adapters are on.
    pub lora_layers: Layers,
    /// CPU threads.
    pub threads: usize,
    /// Tests with adapters take turns with the base.
    pub paired: bool,
    /// After so long a test counts no further repetition.
    pub limit: Duration,
}

/// What one line measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Test {
    /// Adapters that the paths take in turn; 0 is the base.
    pub adapters: u32,
    /// `None` is the prompt test: one prompt, whatever the paths.
    pub paths: Option<u32>,
}

/// The projections that random adapters have factors of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Targets {
    /// All linear layers.
    All,
    /// q and v.
    QueryValue,
}

/// An engine, and what is measured with it.
pub(crate) struct Runner {
    pub engine: Engine,
    pub settings: Settings,
    /// What the model is called in results.
    name: String,
    precision: Precision,
    weights: Weights,
    /// Which projections adapters have factors of.
    targets: Targets,
    adapters: Vec<AdapterId>,
    random: Random,
}

impl Runner {
    /// An engine on a model of this name, with room for `sequences` paths.
    pub fn new(
        (name, model): (String, Model),
        options: EngineOptions,
        settings: Settings,
        sequences: usize,
    ) -> Result<Self> {
        settings.lora_layers.mask(model.spec.layers)?;
        let longest = settings
            .prompt
            .saturating_add(1)
            .max(settings.depth.saturating_add(settings.new).saturating_add(3));
        if longest > model.spec.context {
            let reason =
                format!("{longest} positions are more than the model's context of {}", model.spec.context);
            return Err(Error::value("-p, -n, --depth", reason));
        }
        let options = EngineOptions { sequences, context: longest, ..options };
        let (precision, targets) = (options.precision, Targets::All);
        let engine = Engine::from_model(model, options)?;
        let weights = engine.weights().clone();
        let (adapters, random) = (Vec::new(), Random(1));
        Ok(Self { engine, settings, name, precision, weights, targets, adapters, random })
    }

    /// The name of the GPU that it runs on, if it does.
    pub fn gpu(&mut self) -> Option<String> {
        let backend = self.engine.backend();
        (backend.kind() == "gpu").then(|| backend.device().to_owned())
    }

    /// Forgets all adapters, and gives the next ones another rank.
    pub fn set_rank(&mut self, rank: u32) -> Result<()> {
        self.settings.rank = rank;
        self.adapters.drain(..).try_for_each(|id| Ok(self.engine.remove_adapter(id)?))
    }

    /// Forgets all adapters, and gives the next ones factors of these projections.
    pub fn set_targets(&mut self, targets: Targets) -> Result<()> {
        self.targets = targets;
        self.set_rank(self.settings.rank)
    }

    /// Forgets the adapter that was loaded last.
    pub fn forget_one(&mut self) -> Result<()> {
        self.adapters.pop().map_or(Ok(()), |id| Ok(self.engine.remove_adapter(id)?))
    }

    /// Positions of a path at most.
    pub fn context(&self) -> usize {
        let Settings { prompt, depth, new, .. } = self.settings;
        (prompt + 1).max(depth + new + 3)
    }

    /// The engine, the model's weights, and the rank of adapters.
    pub fn into_parts(self) -> (Engine, Weights, usize) {
        (self.engine, self.weights, self.settings.rank as usize)
    }

    /// Loads adapters until there are so many; their ids.
    pub fn adapters(&mut self, count: u32) -> Result<&[AdapterId]> {
        while self.adapters.len() < count as usize {
            let seed = self.adapters.len() as u64;
            let mut adapter = random_adapter(&self.weights, self.settings.rank as usize, seed);
            if self.targets == Targets::QueryValue {
                let pairs = Arc::make_mut(&mut adapter.factors).pairs_mut();
                pairs.retain(|place, _| matches!(place.target, Target::Q | Target::V));
            }
            self.adapters.push(self.engine.add_adapter(adapter)?);
        }
        Ok(&self.adapters)
    }

    /// Measures one line; `step` is called after each repetition.
    pub fn line(&mut self, test: &Test, step: impl Fn()) -> Result<Line> {
        self.adapters(test.adapters)?;
        let (started, mut rates, mut pairs) = (Instant::now(), Vec::new(), Vec::new());
        let paired = self.settings.paired && test.adapters > 0;
        for repetition in 0..=self.settings.repetitions {
            // Every other time the base goes first, so that neither gains from what changes in the course of it.
            let base_first = paired && repetition % 2 == 0;
            let before = if base_first { self.rate(&Test { adapters: 0, ..*test })? } else { 0.0 };
            let rate = self.rate(test)?;
            let base =
                if paired && !base_first { self.rate(&Test { adapters: 0, ..*test })? } else { before };
            // The first run pays for what is made once.
            if repetition > 0 {
                rates.push(rate);
                pairs.push(rate / base);
            }
            step();
            if repetition > 0 && started.elapsed() > self.settings.limit {
                break;
            }
        }
        let of_base = if paired { Ratio::of(&pairs) } else { None };
        Ok(self.describe(test, rates, of_base))
    }

    fn describe(&mut self, test: &Test, rates: Vec<f64>, of_base: Option<Ratio>) -> Line {
        let (tokens_per_second, spread) = median_and_spread(rates);
        let (adapted, settings) = (test.adapters > 0, &self.settings);
        let quant = quant_name(self.engine.plan());
        let kv = format!("{:?}", self.engine.plan().kv.store).to_lowercase();
        let backend = self.engine.backend();
        Line {
            test: if test.paths.is_some() { "decode" } else { "prompt" }.to_owned(),
            tokens: if test.paths.is_some() { settings.new } else { settings.prompt },
            paths: test.paths.unwrap_or(1),
            adapters: test.adapters,
            rank: if adapted { settings.rank } else { 0 },
            lora_layers: if adapted { settings.lora_layers.to_string() } else { "none".to_owned() },
            backend: backend.kind().to_owned(),
            device: backend.device().to_owned(),
            quant,
            threads: settings.threads,
            model: Some(self.name.clone()),
            precision: Some(format!("{:?}", self.precision).to_lowercase()),
            kv: Some(kv),
            depth: Some(if test.paths.is_some() { settings.depth } else { 0 }),
            tokens_per_second,
            spread,
            bandwidth_share: None,
            of_base: of_base.map(|ratio| ratio.mean),
            of_base_low: of_base.and_then(|ratio| Some(ratio.interval?[0])),
            of_base_high: of_base.and_then(|ratio| Some(ratio.interval?[1])),
            peak_bytes: peak_bytes(),
        }
    }

    /// Tokens per second of a test, once.
    pub fn rate(&mut self, test: &Test) -> Result<f64> {
        match test.paths {
            None => self.prompt_rate(test.adapters),
            Some(paths) => self.decode_rate(test.adapters, paths),
        }
    }

    /// The adapter of a path.
    fn lora(&self, adapters: u32, path: u32) -> Result<Lora> {
        let layers = self.settings.lora_layers.mask(self.engine.spec().layers)?;
        let adapter = path.checked_rem(adapters).and_then(|index| self.adapters.get(index as usize));
        Ok(adapter.map_or(Lora::BASE, |&id| Lora { layers, ..Lora::new(id) }))
    }

    /// Tokens that mean nothing, and others each time: a prompt must be run, not found in the cache.
    pub fn ids(&mut self, count: usize) -> Vec<u32> {
        let vocab = self.engine.spec().vocab as u64;
        (0..count).map(|_| (self.random.next() % vocab) as u32).collect()
    }

    /// Prompt tokens per second, until the first new token.
    fn prompt_rate(&mut self, adapters: u32) -> Result<f64> {
        let lora = self.lora(adapters, 0)?;
        let request = Request::new(self.ids(self.settings.prompt), 1).with_lora(lora);
        Ok(self.engine.generate(&request)?.report.prompt_rate())
    }

    /// New tokens per second of all paths, while all are decoding.
    fn decode_rate(&mut self, adapters: u32, paths: u32) -> Result<f64> {
        // Two more than are counted: a path's first token comes from the prompt, and paths start one step apart.
        let (ids, limit) = (self.ids(self.settings.depth + 1), self.settings.new + 2);
        let loras: Vec<Lora> = (0..paths).map(|path| self.lora(adapters, path)).collect::<Result<_>>()?;
        let request = Request { paths, ignore_eos: true, lora: loras[0], ..Request::new(ids, limit) };
        let mut meter = Meter::new(paths as usize, limit);
        self.engine.stream(&request, |event| {
            let first = meter.token(event.path as usize, Instant::now());
            if first { Control::Switch(loras[event.path as usize]) } else { Control::Continue }
        })?;
        Ok(meter.rate())
    }

    /// The plan and the rows of a step in the middle of a decode test of so many paths.
    pub fn decode_step(&self, adapters: u32, paths: u32) -> Result<(Arc<Plan>, StepShape)> {
        let middle = (self.settings.depth + self.settings.new / 2) as u32;
        // Paths have the whole pages of their prompt in common.
        let shared = self.settings.depth / PAGE * PAGE;
        let mut shape = StepShape::decode(paths, middle).with_shared_prefix(shared as u32);
        for (row, path) in shape.rows.iter_mut().zip(0..) {
            let lora = self.lora(adapters, path)?;
            (row.slot, row.lora) = (path.checked_rem(adapters), lora.layers.0);
        }
        shape.ranks = vec![self.settings.rank; adapters as usize];
        let active = shape.rows.iter().any(|row| row.slot.is_some() && row.lora != 0);
        let plan = self.engine.adapted_plan().filter(|_| active).unwrap_or_else(|| self.engine.plan());
        Ok((Arc::clone(plan), shape))
    }

    /// DRAM bytes that decoding moves in a second, as a share of what `read` says that the memory gives for as many
    /// bytes as one step moves; `None` for prompts.
    pub fn bandwidth_share(
        &self,
        test: &Test,
        rate: f64,
        read: &mut dyn FnMut(u64) -> Result<f64>,
    ) -> Result<Option<f64>> {
        let Some(paths) = test.paths else { return Ok(None) };
        let (plan, shape) = self.decode_step(test.adapters, paths)?;
        let cost: OpCost = (0..plan.ops.len()).map(|op| plan.cost(op, &shape)).sum();
        let steps = rate / f64::from(paths);
        Ok(Some(cost.dram_bytes() as f64 * steps / read(cost.dram_bytes())?))
    }
}
