//! `generate --policy`: a trained policy picks the layers in which LoRA is on.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};

use serde::Serialize;
use wattle_engine::LayerMask;
use wattle_engine::plan::Plan;
use wattle_policy::observation::Case;
use wattle_policy::scheme::Cell;
use wattle_policy::simulate::Conditions;
use wattle_policy::thermal::Temperatures;
use wattle_policy::workload::{Inference, Workload};
use wattle_policy::{
    Decision, Grid, LoraDecision, LoraPolicy, MAX_LENGTH, Profile, RequestFacts, TrainedPolicy,
};

use crate::energy::{self, Joules};
use crate::error::{Error, Result};
use crate::meters::Battery;
use crate::session::{Session, Source};
use crate::simulated::{shape_name, weight_bytes};

/// Air, and a device that nobody has used, where nothing else is said \[°C\].
const AMBIENT_C: f64 = 25.0;

/// A policy and what it decides for.
#[derive(Debug, clap::Args)]
pub(crate) struct PolicyArgs {
    /// A trained policy: its choice of layers becomes the mask (together with --lora-layers, if that leaves some out)
    #[arg(long, value_name = "FILE", requires = "device")]
    policy: Option<PathBuf>,
    /// The simulated device that the policy decides for
    #[arg(long, value_name = "NAME|FILE", requires = "policy")]
    device: Option<String>,
    /// The grid that charges it: a country, `world`, or g/kWh
    #[arg(long, value_name = "CODE|G_PER_KWH", requires = "policy", default_value = "world")]
    grid: String,
    /// The task [default: the policy's first for this model]
    #[arg(long, value_name = "NAME", requires = "policy")]
    task: Option<String>,
    /// Charge, 0 to 1 [default: this machine's battery, or full]
    #[arg(long, value_name = "SHARE", requires = "policy")]
    battery: Option<f64>,
    /// Temperature of the device's surface and chip in °C [default: the air's]
    #[arg(long, value_name = "C", requires = "policy")]
    surface: Option<f64>,
    /// Temperature of the air in °C
    #[arg(long, value_name = "C", requires = "policy", default_value_t = AMBIENT_C)]
    ambient: f64,
}

/// What was chosen and why; everything about the device is simulated.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct PolicyReport {
    pub policy: String,
    /// Simulated.
    pub device: String,
    pub grid: Grid,
    pub task: String,
    pub battery: f64,
    pub surface_c: f64,
    #[serde(flatten)]
    pub decision: Decision,
    /// In words.
    pub why: String,
}

/// Reads a policy file.
pub(crate) fn read(file: &Path) -> Result<TrainedPolicy> {
    let bytes = crate::files::read(file, MAX_LENGTH as u64)?;
    TrainedPolicy::from_bytes(&bytes).map_err(|error| Error::file(file, error))
}

/// A trained policy as the engine asks it: for one model with one adapter, on one simulated device in one state.
struct Steered {
    policy: TrainedPolicy,
    cell: Cell,
    profile: Profile,
    conditions: Conditions,
    base: Arc<Plan>,
    adapted: Plan,
    weight_bytes: u64,
    /// Positions that the model has.
    context: usize,
    decisions: Sender<Decision>,
}

impl LoraPolicy for Steered {
    /// The request's layers. What cannot be priced is left as it was asked for, and is not reported as decided.
    fn decide(&mut self, request: &RequestFacts) -> LoraDecision {
        let inference = Inference {
            prompt: request.prompt_tokens as u32,
            new: request.max_new_tokens.clamp(1, self.context) as u32,
            rank: request.rank.unwrap_or(0) as u32,
            lora_on_prompt: request.from < request.prompt_tokens,
        };
        let Self { profile, conditions, base, adapted, .. } = self;
        let workload = Workload::new(&**base, adapted, request.layers, self.weight_bytes, inference);
        let priced = [workload.price(profile)];
        let case = Case { profile, priced: &priced, inference, conditions: *conditions };
        let Ok(decision) = self.policy.decide(self.cell, &case) else { return LoraDecision::AS_ASKED };
        let layers = LayerMask::of(decision.layers.iter().copied()).0;
        // Nobody listens any more where no report is wanted.
        let _ = self.decisions.send(decision);
        LoraDecision { layers, ..LoraDecision::AS_ASKED }
    }
}

/// What a report says of a policy that the engine asks.
pub(crate) struct Steering {
    decisions: Receiver<Decision>,
    policy: String,
    device: String,
    grid: Grid,
    task: String,
    conditions: Conditions,
}

impl Steering {
    /// What was decided last.
    ///
    /// # Errors
    /// When the policy was not asked, or could not decide.
    pub fn report(self) -> Result<PolicyReport> {
        let Self { decisions, policy, device, grid, task, conditions } = self;
        let none = || Error::file(Path::new(&policy), "it could not decide");
        let decision = decisions.try_iter().last().ok_or_else(none)?;
        let Conditions { battery, temperatures, .. } = conditions;
        let why = why(&decision, &grid);
        Ok(PolicyReport {
            policy,
            device,
            grid,
            task,
            battery,
            surface_c: temperatures.surface_c,
            decision,
            why,
        })
    }
}

impl PolicyArgs {
    /// From now on the engine asks the policy about every request, if one is given.
    ///
    /// # Errors
    /// Names what the policy was not made for.
    pub fn steer(&self, session: &mut Session, source: &Source) -> Result<Option<Steering>> {
        let (Some(file), Some(device)) = (&self.policy, &self.device) else { return Ok(None) };
        let policy = read(file)?;
        let profile = energy::profile(device)?;
        let grid = Grid::named(&self.grid)?;
        let conditions = self.conditions(&grid)?;
        let no_adapter = || Error::value("--policy", "there is no adapter whose layers it could choose");
        let adapter = session.lora.adapter.ok_or_else(no_adapter)?;
        let (engine, scheme) = (&mut session.engine, policy.scheme());
        if scheme.adapters.len() > 1 {
            return Err(Error::file(file, "it chooses among adapters, and generate has one"));
        }
        let name = source.model.file_name().unwrap_or_default().to_string_lossy();
        let (spec, refusal) = (engine.spec(), |error| Error::file(file, error));
        let (context, task) = (spec.context, self.task.as_deref());
        let cell =
            scheme.find(&profile.name, &name, &shape_name(spec), spec.layers, task).map_err(refusal)?;
        let (decisions, received) = std::sync::mpsc::channel();
        let steering = Steering {
            decisions: received,
            policy: file.display().to_string(),
            device: profile.name.clone(),
            grid,
            task: scheme.model(cell).tasks[cell.task].name.clone(),
            conditions,
        };
        let steered = Steered {
            base: Arc::clone(engine.plan()),
            adapted: engine.priced_plan(adapter).ok_or_else(no_adapter)?,
            weight_bytes: weight_bytes(engine.weights()),
            policy,
            cell,
            profile,
            conditions,
            context,
            decisions,
        };
        engine.set_policy(Some(Box::new(steered)));
        Ok(Some(steering))
    }

    fn conditions(&self, grid: &Grid) -> Result<Conditions> {
        let within = |name: &str, value: f64, low: f64, high: f64| match (low..=high).contains(&value) {
            true => Ok(value),
            false => Err(Error::value(name, format!("{value} is not between {low} and {high}"))),
        };
        let battery = self.battery.or_else(|| Battery::charge(Path::new("/sys/class/power_supply")));
        let ambient_c = within("--ambient", self.ambient, -40.0, 60.0)?;
        let surface_c = within("--surface", self.surface.unwrap_or(ambient_c), -40.0, 120.0)?;
        Ok(Conditions {
            temperatures: Temperatures::even(surface_c),
            ambient_c,
            battery: within("--battery", battery.unwrap_or(1.0), 0.0, 1.0)?,
            grid_mg_per_wh: grid.mg_per_wh,
        })
    }
}

/// The decision in words.
fn why(decision: &Decision, grid: &Grid) -> String {
    let Decision { expected, reward, least_reward, range: [least, most], .. } = decision;
    let gate = if reward.gate { "below its carbon target" } else { "above its carbon target" };
    format!(
        "{} of {least} to {most} layers: expects {} and {:.4} mg CO2e on {} g/kWh ({gate}), {:.2} s, {:.1} °C, score \
         {:.3}; reward {:.4}, with the fewest layers {:.4}",
        decision.layers.len(),
        Joules(expected.energy_j),
        expected.carbon.operational_mg,
        grid.mg_per_wh,
        expected.latency_s,
        expected.hottest_surface_c,
        reward.performance,
        reward.total,
        least_reward.total,
    )
}

impl PolicyReport {
    /// Writes it for a reader.
    pub fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let layers: Vec<String> = self.decision.layers.iter().map(usize::to_string).collect();
        writeln!(out, "policy   layers {} for a simulated {}, {}", layers.join(","), self.device, self.why)
    }
}
