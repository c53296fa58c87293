//! Joules of what an engine ran: the proxy, op by op, with its tier.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

use serde::Serialize;
use wattle_engine::backend::Timing;
use wattle_engine::plan::Plan;
use wattle_engine::{AdapterId, Engine, RanStep};
use wattle_policy::thermal::leakage_w;
use wattle_policy::{CostSource, OpCost, OpEnergy, Profile, StepShape, Tier, layer_of};

use crate::error::{Error, Result};
use crate::files::read_text;

/// Junction temperature that leakage is reckoned at where nobody reads one \[°C\] (*ours*).
const JUNCTION_C: f64 = 50.0;
/// The longest profile that is read \[bytes\].
const MAX_PROFILE: u64 = 1 << 20;

/// `--energy-profile`: whose coefficients the proxy takes.
#[derive(Debug, clap::Args)]
pub(crate) struct ProfileArgs {
    /// Device profile for joules: a name that `policy devices` lists, or a file [default: gpu on a real GPU, else
    /// server]
    #[arg(long = "energy-profile", value_name = "NAME|FILE")]
    pub profile: Option<String>,
}

impl ProfileArgs {
    /// The profile; without one the default for the engine's device.
    pub fn find(&self, engine: &mut Engine) -> Result<Profile> {
        match &self.profile {
            Some(text) => profile(text),
            None => {
                let real_gpu = || crate::devices::gpus().iter().any(|gpu| !gpu.software);
                let is_gpu = engine.backend().kind() == "gpu" && real_gpu();
                Ok(Profile::named(if is_gpu { "gpu" } else { "server" })?)
            }
        }
    }
}

/// A profile by name, or from a file.
pub(crate) fn profile(text: &str) -> Result<Profile> {
    let path = Path::new(text);
    if !text.ends_with(".json") && !path.is_file() {
        return Ok(Profile::named(text)?);
    }
    let text = read_text(path, MAX_PROFILE)?;
    Profile::parse(&text).map_err(|error| Error::file(path, error))
}

/// Work and its energy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Work {
    pub joules: f64,
    pub dram_bytes: u64,
    pub flops: u64,
    pub launches: u64,
}

impl Work {
    fn new(cost: &OpCost, joules: f64) -> Self {
        Self { joules, dram_bytes: cost.dram_bytes(), flops: cost.flops, launches: cost.launches }
    }
}

/// One op over all steps.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct OpLine {
    pub op: String,
    pub kernel: &'static str,
    #[serde(flatten)]
    pub energy: OpEnergy,
    /// Their sum.
    pub joules: f64,
    /// DASI: how much of the arithmetic units the op can use, 0 to 1.
    pub utilisation: f64,
}

/// What a run cost in joules.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Energy {
    /// All of it: the sum of the ops.
    pub joules: f64,
    pub joules_per_new_token: f64,
    pub tier: Tier,
    /// The profile whose coefficients were used.
    pub profile: String,
    /// By cause.
    pub parts: OpEnergy,
    /// By layer; what lies outside the layers is not among them.
    pub layers_j: Vec<f64>,
    /// By kernel, most first.
    pub kernels_j: Vec<(&'static str, f64)>,
    /// What LoRA added, against the same steps without it (both with the time of the roofline).
    pub lora: Work,
    /// LoRA's share of the joules, 0 to 1.
    pub lora_share: f64,
    /// What masks saved, against the same steps with LoRA on wherever a row has an adapter.
    pub saved: Work,
    pub ops: Vec<OpLine>,
}

/// The plans that steps ran on, as they cost with the adapter at hand.
pub(crate) struct Plans {
    base: std::sync::Arc<Plan>,
    adapted: Option<Plan>,
}

impl Plans {
    /// The engine's.
    pub fn new(engine: &Engine, adapter: Option<AdapterId>) -> Self {
        let adapted = adapter.and_then(|adapter| engine.priced_plan(adapter));
        Self { base: std::sync::Arc::clone(engine.plan()), adapted }
    }

    /// Of a model without an adapter.
    pub fn of_base(base: std::sync::Arc<Plan>) -> Self {
        Self { base, adapted: None }
    }

    fn of(&self, adapted: bool) -> &Plan {
        self.adapted.as_ref().filter(|_| adapted).unwrap_or(&self.base)
    }
}

impl Energy {
    /// The proxy of these steps. An op's time is what was measured, where something was, else the roofline's.
    pub fn new(
        steps: &[RanStep],
        plans: &Plans,
        timings: &[Timing],
        new_tokens: usize,
        profile: &Profile,
    ) -> Self {
        let static_w = profile.idle_w + leakage_w(profile.leak_w, JUNCTION_C);
        let sums = sum(steps.iter().map(|step| (&step.shape, plans.of(step.adapted))), profile);
        let measured: BTreeMap<&str, f64> = timings.iter().map(|t| (t.op.as_str(), t.seconds)).collect();
        let line = |(name, op): (&String, &OpSum)| {
            let seconds = measured.get(name.as_str()).copied().unwrap_or(op.seconds);
            let energy = profile.coefficients.energy(&op.cost, seconds, static_w);
            let utilisation = profile.roofline.utilisation(&op.cost);
            OpLine { op: name.clone(), kernel: op.kernel, energy, joules: energy.total_j(), utilisation }
        };
        let ops: Vec<OpLine> = sums.iter().map(line).collect();
        let joules: f64 = ops.iter().map(|op| op.joules).sum();
        let actual = Self::modelled(&sums, profile, static_w);
        let without = steps.iter().map(|step| (without_lora(&step.shape), plans.of(false)));
        let without = Self::modelled(&sum(without, profile), profile, static_w);
        let full = steps.iter().map(|step| {
            let shape = with_lora(&step.shape);
            let adapted = shape.rows.iter().any(|row| row.lora != 0);
            (shape, plans.of(adapted))
        });
        let full = Self::modelled(&sum(full, profile), profile, static_w);
        let lora = difference(&actual, &without);
        Self {
            joules,
            joules_per_new_token: if new_tokens > 0 { joules / new_tokens as f64 } else { 0.0 },
            tier: profile.tier(),
            profile: profile.name.clone(),
            parts: ops.iter().map(|op| op.energy).sum(),
            layers_j: by_layer(&ops, plans.base.kv.layers),
            kernels_j: by_kernel(&ops),
            lora_share: if actual.joules > 0.0 { lora.joules / actual.joules } else { 0.0 },
            lora,
            saved: difference(&full, &actual),
            ops,
        }
    }

    /// All ops with the time of the roofline.
    fn modelled(sums: &BTreeMap<String, OpSum>, profile: &Profile, static_w: f64) -> Work {
        let cost: OpCost = sums.values().map(|op| op.cost).sum();
        let joules = |op: &OpSum| profile.coefficients.energy(&op.cost, op.seconds, static_w).total_j();
        Work::new(&cost, sums.values().map(joules).sum())
    }

    /// One line for a reader.
    pub fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let share = self.lora_share * 100.0;
        writeln!(
            out,
            "energy   {} ({}, profile {}): {} a new token; LoRA {share:.1} %; skipping saved {}, {} launches",
            Joules(self.joules),
            self.tier,
            self.profile,
            Joules(self.joules_per_new_token),
            Joules(self.saved.joules),
            self.saved.launches,
        )
    }
}

/// An op over all steps.
#[derive(Clone, Copy, Debug, Default)]
struct OpSum {
    kernel: &'static str,
    cost: OpCost,
    /// By the roofline, step by step.
    seconds: f64,
}

/// Ops by name over steps, each on its plan.
fn sum<'a, S: std::borrow::Borrow<StepShape>>(
    steps: impl Iterator<Item = (S, &'a Plan)>,
    profile: &Profile,
) -> BTreeMap<String, OpSum> {
    let mut sums: BTreeMap<&'a str, OpSum> = BTreeMap::new();
    for (shape, plan) in steps {
        for (index, op) in plan.ops.iter().enumerate() {
            let cost = plan.cost(index, shape.borrow());
            let sum = sums.entry(&op.name).or_default();
            sum.kernel = op.kind.kernel();
            sum.cost += cost;
            sum.seconds += profile.roofline.seconds(&cost);
        }
    }
    sums.into_iter().map(|(name, sum)| (name.to_owned(), sum)).collect()
}

/// The step with LoRA nowhere.
fn without_lora(shape: &StepShape) -> StepShape {
    let mut shape = shape.clone();
    shape.rows.iter_mut().for_each(|row| row.lora = 0);
    shape
}

/// The step with LoRA wherever a row has an adapter.
fn with_lora(shape: &StepShape) -> StepShape {
    let mut shape = shape.clone();
    shape.rows.iter_mut().filter(|row| row.slot.is_some()).for_each(|row| row.lora = u128::MAX);
    shape
}

/// `more` − `less`.
fn difference(more: &Work, less: &Work) -> Work {
    Work {
        joules: more.joules - less.joules,
        dram_bytes: more.dram_bytes.saturating_sub(less.dram_bytes),
        flops: more.flops.saturating_sub(less.flops),
        launches: more.launches.saturating_sub(less.launches),
    }
}

fn by_layer(ops: &[OpLine], layers: usize) -> Vec<f64> {
    let mut sums = vec![0.0; layers];
    for op in ops {
        if let Some(sum) = layer_of(&op.op).and_then(|layer| sums.get_mut(layer as usize)) {
            *sum += op.joules;
        }
    }
    sums
}

fn by_kernel(ops: &[OpLine]) -> Vec<(&'static str, f64)> {
    let mut sums: BTreeMap<&'static str, f64> = BTreeMap::new();
    for op in ops {
        *sums.entry(op.kernel).or_default() += op.joules;
    }
    let mut sums: Vec<_> = sums.into_iter().collect();
    sums.sort_by(|a, b| b.1.total_cmp(&a.1));
    sums
}

/// Shows joules with a prefix.
pub(crate) struct Joules(pub f64);

impl std::fmt::Display for Joules {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0.abs() {
            j if j >= 1.0 => write!(f, "{:.2} J", self.0),
            j if j >= 1e-3 => write!(f, "{:.2} mJ", self.0 * 1e3),
            _ => write!(f, "{:.2} µJ", self.0 * 1e6),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wattle_engine::adapter::{Factors, Pair, Place, Target};
    use wattle_engine::model::{Dtype, Model};
    use wattle_engine::plan::LoraCapacity;
    use wattle_engine::{BackendChoice, EngineOptions};

    /// The plans of a tiny Llama with rank 4 on q and v of two of its three layers.
    fn plans() -> Plans {
        let model = Model::random("tiny", Dtype::Bf16, 0).unwrap();
        let options = EngineOptions { backend: BackendChoice::Cpu, ..EngineOptions::default() };
        let capacity = LoraCapacity { slots: 1, rank: 4, outside: false };
        let (base, adapted) = wattle_engine::compile(&model, &options, capacity);
        let mut factors = Factors::default();
        for (layer, target, rows) in [(0, Target::Q, 40), (0, Target::V, 20), (2, Target::Q, 40)] {
            let pair = Pair { rank: 4, cols: 40, rows, a: vec![0.0; 160], b: vec![0.0; rows * 4] };
            factors.pairs_mut().insert(Place { layer, target }, pair);
        }
        Plans { base: base.into(), adapted: Some(adapted.priced_for(&factors)) }
    }

    fn step(lora: u128) -> RanStep {
        let mut shape = StepShape::decode(1, 9).with_adapter(4);
        shape.rows[0].lora = lora;
        RanStep { shape, adapted: lora != 0 }
    }

    fn energy(steps: &[RanStep]) -> Energy {
        Energy::new(steps, &plans(), &[], steps.len(), &Profile::named("server").unwrap())
    }

    #[test]
    fn totals_are_the_sum_of_their_parts() {
        let energy = energy(&[step(0b111), step(0b101), step(0)]);
        let close = |a: f64, b: f64| (a - b).abs() <= 1e-12 * b.abs();
        assert!(close(energy.joules, energy.parts.total_j()));
        assert!(close(energy.joules, energy.kernels_j.iter().map(|(_, j)| j).sum()));
        let outside: f64 =
            energy.ops.iter().filter(|op| layer_of(&op.op).is_none()).map(|op| op.joules).sum();
        assert!(close(energy.joules, energy.layers_j.iter().sum::<f64>() + outside));
        assert!(close(energy.joules_per_new_token * 3.0, energy.joules));
        assert_eq!(energy.tier, Tier::Literature);
    }

    #[test]
    fn a_mask_saves_exactly_the_factors_that_it_skips() {
        // q and v of layer 0: rank 4 × (40 inputs twice + 40 and 20 outputs); q of layer 2: 4 × (40 + 40).
        let (first, last) = (4 * (80 + 60), 4 * (40 + 40));
        let on = energy(&[step(0b111)]);
        assert_eq!((on.saved.dram_bytes, on.saved.launches), (0, 0));
        assert_eq!(on.lora.flops, 2 * (first + last));
        let masked = energy(&[step(0b011)]);
        assert_eq!(masked.saved.flops, 2 * last);
        // Its bytes: the factors, x again for t = A x, t written and read.
        assert_eq!(masked.saved.dram_bytes, 4 * (last + 40 + 2 * 4));
        assert_eq!(masked.saved.launches, 0, "the plan with LoRA runs all its launches");
        let off = energy(&[step(0)]);
        assert_eq!((off.lora, off.lora_share), (Work::default(), 0.0));
        assert_eq!(off.saved.flops, 2 * (first + last));
        assert!(off.saved.launches > 0 && off.saved.joules > masked.saved.joules);
    }

    #[test]
    fn shared_pages_are_priced_as_read_once() {
        let step = |shape| RanStep { shape, adapted: false };
        let apart = energy(&[step(StepShape::decode(4, 199))]);
        let shared = energy(&[step(StepShape::decode(4, 199).with_shared_prefix(128))]);
        let plans = plans();
        let profile = Profile::named("server").unwrap();
        let position = 2 * plans.base.kv.layers * plans.base.kv.position_bytes();
        let spared = profile.coefficients.dram_byte_j * (3 * 128 * position) as f64;
        assert!((apart.parts.dram_j - shared.parts.dram_j - spared).abs() <= 1e-9 * spared);
        assert!(shared.joules < apart.joules);
    }

    #[test]
    fn measured_time_takes_the_place_of_the_rooflines() {
        let timing = |seconds| {
            let op = "layers.0.attend".to_owned();
            vec![Timing { op, kernel: "attend", seconds, launches: 1 }]
        };
        let profile = Profile::named("server").unwrap();
        let joules = |seconds| Energy::new(&[step(0)], &plans(), &timing(seconds), 1, &profile).joules;
        let static_w = profile.idle_w + leakage_w(profile.leak_w, JUNCTION_C);
        assert!((joules(3.0) - joules(1.0) - 2.0 * static_w).abs() < 1e-9);
    }

    #[test]
    fn joules_have_prefixes() {
        assert_eq!(Joules(12.345).to_string(), "12.35 J");
        assert_eq!(Joules(0.0021).to_string(), "2.10 mJ");
        assert_eq!(Joules(-3e-6).to_string(), "-3.00 µJ");
    }
}
