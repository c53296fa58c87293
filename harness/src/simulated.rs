//! Models on simulated devices: their plans' costs, and the world that policies are trained and scored in.

use std::collections::BTreeMap;
use std::path::Path;

use wattle_engine::adapter::{Factors, Pair, Place, Target};
use wattle_engine::model::{Family, Model, Quant, Spec, Weights};
use wattle_engine::plan::{LoraCapacity, Plan};
use wattle_engine::{BackendChoice, EngineOptions};
use wattle_policy::reward::Rule;
use wattle_policy::scheme::{ActionKind, AdapterEntry, DeviceEntry, ModelEntry, Scheme, TaskEntry};
use wattle_policy::workload::{Inference, Workload};
use wattle_policy::world::{Costs, World};
use wattle_policy::{Measured, Profile, Quality, StandIn};

use crate::error::{Error, Result};

/// The paper's devices.
pub(crate) const DEVICES: [&str; 4] = ["smartwatch", "ar-glasses", "vr-headset", "tablet"];

/// The paper's models: their name, and the shape that they have (DialoGPT-Small is a GPT-2).
const MODELS: [(&str, &str); 4] =
    [("distilgpt2", "distilgpt2"), ("opt-125m", "opt-125m"), ("dialogpt-small", "gpt2"), ("gpt2", "gpt2")];

/// The paper's tasks.
const TASKS: [&str; 3] = ["qa", "summary", "dialogue"];

/// Prompt and new tokens; a policy is trained on the first nine and scored on the others (*ours*).
const LENGTHS: [(u32, u32); 13] = [
    (16, 8),
    (16, 16),
    (16, 32),
    (48, 8),
    (48, 16),
    (48, 32),
    (128, 8),
    (128, 16),
    (128, 32),
    (24, 12),
    (32, 24),
    (80, 10),
    (96, 28),
];
const TRAINED: usize = 9;

/// Accuracy of the shipped model by layers, which lies beside it: `policy measure` wrote it.
const MEASURED: &str = "layers.json";
/// The longest such file that is read \[bytes\].
const MAX_MEASURED: u64 = 1 << 20;

/// What a world is made of.
#[derive(Clone, Debug)]
pub(crate) struct Choices {
    /// Names of devices.
    pub devices: Vec<String>,
    /// Names of models; `sprout` is the shipped one.
    pub models: Vec<String>,
    /// Ranks of the adapters to choose from; where there are several, the shipped model, which has one, is not among the
    /// models.
    pub ranks: Vec<u32>,
    pub action: ActionKind,
    pub rule: Rule,
}

impl Default for Choices {
    fn default() -> Self {
        Self {
            devices: DEVICES.map(str::to_owned).to_vec(),
            models: MODELS.iter().map(|(name, _)| (*name).to_owned()).chain(["sprout".to_owned()]).collect(),
            ranks: vec![RANK],
            action: ActionKind::Count,
            rule: Rule::default(),
        }
    }
}

/// What a model's shape is called: models of the same shape cost the same.
pub(crate) fn shape_name(spec: &Spec) -> String {
    let family = match spec.family {
        Family::Gpt2 => "gpt2",
        Family::Opt => "opt",
        Family::Llama => "llama",
        Family::Mistral => "mistral",
        Family::Qwen2 => "qwen2",
        Family::Qwen3 => "qwen3",
        Family::Phi3 => "phi3",
    };
    format!("{family}-{}x{}-ffn{}-vocab{}", spec.layers, spec.width, spec.ffn, spec.vocab)
}

/// Bytes of all weights; a tied head counts once.
pub(crate) fn weight_bytes(weights: &Weights) -> u64 {
    let outside = [&weights.project_in, &weights.project_out];
    let mut matrices = vec![&weights.embed];
    matrices.extend(&weights.positions);
    matrices.extend(outside.into_iter().flatten().map(|linear| &linear.weight));
    for layer in &weights.layers {
        let linears = [&layer.q, &layer.k, &layer.v, &layer.o, &layer.up, &layer.down];
        matrices.extend(linears.into_iter().chain(&layer.gate).map(|linear| &linear.weight));
    }
    if !std::sync::Arc::ptr_eq(&weights.embed, &weights.head.weight) {
        matrices.push(&weights.head.weight);
    }
    matrices.iter().map(|matrix| matrix.bytes() as u64).sum()
}

/// A model's plans, as a GPU runs them, with an adapter of this rank on these targets of every layer.
pub(crate) struct Plans {
    base: Plan,
    adapted: Plan,
    layers: usize,
    weight_bytes: u64,
}

impl Plans {
    /// Of a model that is kept as it is.
    pub fn new(model: &Model, rank: usize, targets: &[Target]) -> Self {
        let options = EngineOptions { backend: BackendChoice::Gpu, ..EngineOptions::default() };
        let capacity = LoraCapacity { slots: 1, rank, outside: false };
        let (base, adapted) = wattle_engine::compile(model, &options, capacity);
        let mut factors = Factors::default();
        // Only which places have factors and their rank matters here.
        let pair = Pair { rank, cols: 0, rows: 0, a: Vec::new(), b: Vec::new() };
        for layer in 0..model.spec.layers as u32 {
            factors.pairs_mut().extend(targets.iter().map(|&target| (Place { layer, target }, pair.clone())));
        }
        let adapted = adapted.priced_for(&factors);
        Self { base, adapted, layers: model.spec.layers, weight_bytes: weight_bytes(&model.weights) }
    }

    /// Of a model by its name, with weights as a device keeps them.
    pub fn named(name: &str, sprout: &Path, kept: &str) -> Result<Self> {
        let (model, rank, targets) = simulated_model(name, sprout, kept)?;
        Ok(Self::new(&model, rank as usize, &targets))
    }

    /// What an inference costs.
    pub fn workload(&self, inference: Inference) -> Workload {
        Workload::new(&self.base, &self.adapted, self.layers, self.weight_bytes, inference)
    }
}

/// The quantization of this name; `None` for `none`.
fn quant(name: &str) -> Result<Option<Quant>> {
    if name == "none" {
        return Ok(None);
    }
    let found = Quant::ALL.iter().find(|quant| quant.name() == name);
    found.copied().map(Some).ok_or_else(|| Error::value("quant", format!("{name:?} is not known")))
}

/// The paper's adapter: rank 8 on q and v.
const RANK: u32 = 8;

/// A world of simulated devices on the engine's own plans.
pub(crate) fn world(choices: &Choices, sprout: &Path) -> Result<World> {
    check_ranks(choices)?;
    let profiles: Vec<Profile> =
        choices.devices.iter().map(|name| crate::energy::profile(name)).collect::<Result<_>>()?;
    let mut models = Vec::new();
    let mut costs: BTreeMap<(usize, String), Costs> = BTreeMap::new();
    for (index, name) in choices.models.iter().enumerate() {
        for kept in profiles.iter().map(|profile| &profile.quant) {
            if costs.contains_key(&(index, kept.clone())) {
                continue;
            }
            let (model, own, targets) = simulated_model(name, sprout, kept)?;
            let ranks = if name == "sprout" { &[own][..] } else { &choices.ranks };
            let plans: Vec<(u32, Plans)> =
                ranks.iter().map(|&rank| (rank, Plans::new(&model, rank as usize, &targets))).collect();
            let workload = |&(prompt, new): &(u32, u32)| {
                let lora_on_prompt = name != "sprout";
                let of = |(rank, plans): &(u32, Plans)| {
                    plans.workload(Inference { prompt, new, rank: *rank, lora_on_prompt })
                };
                plans.iter().map(of).collect()
            };
            costs.insert((index, kept.clone()), LENGTHS.iter().map(workload).collect());
            if models.len() == index {
                models.push(entry(name, &model.spec, sprout)?);
            }
        }
    }
    let device = |profile: &Profile| DeviceEntry { name: profile.name.clone(), target_mg: 1.0 };
    let scheme = Scheme {
        devices: profiles.iter().map(device).collect(),
        models,
        adapters: choices.ranks.iter().map(|&rank| adapter(rank)).collect(),
        action: choices.action,
        rule: choices.rule,
    };
    Ok(World::new(scheme, profiles, &costs, TRAINED)?)
}

/// Refuses ranks that no adapter has.
fn check_ranks(choices: &Choices) -> Result<()> {
    let error = |reason: &str| Err(Error::value("--ranks", reason));
    let ranks = &choices.ranks;
    if ranks.is_empty() || ranks.len() > 16 || ranks.iter().any(|rank| !(1..=256).contains(rank)) {
        return error("expected 1 to 16 ranks of 1 to 256");
    }
    if (1..ranks.len()).any(|i| ranks[..i].contains(&ranks[i])) {
        return error("one stands there twice");
    }
    match ranks.len() > 1 && choices.models.iter().any(|name| name == "sprout") {
        true => error("sprout has one adapter: name other models with --models"),
        false => Ok(()),
    }
}

/// An adapter of this rank with α = 2 r, as the paper's is. What another rank adds to the gain is *wattle's stand-in*: a
/// twentieth per doubling.
fn adapter(rank: u32) -> AdapterEntry {
    let gain = 1.0 + 0.05 * (f64::from(rank) / f64::from(RANK)).log2();
    AdapterEntry { rank, alpha: 2.0 * f64::from(rank), gain }
}

/// The world that a policy was made for: its targets and scores are those of its training.
///
/// # Errors
/// When a model has another shape now.
pub(crate) fn world_of(scheme: &Scheme, sprout: &Path) -> Result<World> {
    let choices = Choices {
        devices: scheme.devices.iter().map(|device| device.name.clone()).collect(),
        models: scheme.models.iter().map(|model| model.name.clone()).collect(),
        ranks: scheme.adapters.iter().map(|adapter| adapter.rank).collect(),
        action: scheme.action,
        rule: scheme.rule,
    };
    let mut world = world(&choices, sprout)?;
    for (entry, trained) in world.scheme.models.iter().zip(&scheme.models) {
        if entry.shape != trained.shape || entry.layers != trained.layers {
            let reason = format!("{} was {}, and is {} now", entry.name, trained.shape, entry.shape);
            return Err(Error::Failed(format!("policy: {reason}")));
        }
    }
    world.scheme = scheme.clone();
    Ok(world)
}

/// A model with its adapter's rank and targets: the shipped one as it is, the others without their weights.
fn simulated_model(name: &str, sprout: &Path, kept: &str) -> Result<(Model, u32, Vec<Target>)> {
    if name == "sprout" {
        let model = Model::load(sprout)?;
        let model = match quant(kept)? {
            Some(quant) => model.quantized(quant)?,
            None => model,
        };
        let all =
            [Target::Q, Target::K, Target::V, Target::O, Target::Gate, Target::Up, Target::Down].to_vec();
        return Ok((model, 16, all));
    }
    let shape = MODELS.iter().find(|(known, _)| *known == name).map_or(name, |(_, shape)| shape);
    Ok((Model::blank(shape, quant(kept)?)?, RANK, vec![Target::Q, Target::V]))
}

/// A model and its tasks with their scores.
fn entry(name: &str, spec: &Spec, sprout: &Path) -> Result<ModelEntry> {
    let layers = spec.layers;
    let task = |(name, quality): (&str, Quality)| TaskEntry { name: name.to_owned(), quality };
    let tasks = match name {
        "sprout" => {
            let file = sprout.join(MEASURED);
            let text = crate::files::read(&file, MAX_MEASURED)?;
            let measured: Measured =
                serde_json::from_slice(&text).map_err(|error| Error::file(&file, error))?;
            vec![task(("problems", Quality::Measured(measured)))]
        }
        _ => TASKS.iter().map(|&of| task((of, stand_in(name, of, layers)))).collect(),
    };
    Ok(ModelEntry { name: name.to_owned(), shape: shape_name(spec), layers, tasks })
}

/// Scores of a model whose weights are not here: *wattle's stand-in*. Smaller models score less; LoRA gains most where the
/// base was not made for the task.
fn stand_in(model: &str, task: &str, layers: usize) -> Quality {
    let size = match model {
        "distilgpt2" => 0.9,
        "opt-125m" => 0.95,
        _ => 1.0,
    };
    let (base, gain) = match (task, model) {
        ("dialogue", "dialogpt-small") => (0.45, 0.15),
        ("qa", _) => (0.25, 0.35),
        ("summary", _) => (0.30, 0.20),
        _ => (0.30, 0.25),
    };
    Quality::StandIn(StandIn { base: base * size, gain: gain * size, layers })
}
