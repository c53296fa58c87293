//! `generate --policy`: a trained policy picks the layers in which LoRA is on.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use wattle_engine::LayerMask;
use wattle_policy::observation::Case;
use wattle_policy::simulate::Conditions;
use wattle_policy::thermal::Temperatures;
use wattle_policy::workload::{Inference, Workload};
use wattle_policy::{Decision, Grid, LoraPolicy, MAX_LENGTH};

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
pub(crate) fn read(file: &Path) -> Result<LoraPolicy> {
    let bytes = energy::read(file, MAX_LENGTH as u64)?;
    LoraPolicy::from_bytes(&bytes).map_err(|error| Error::file(file, error))
}

impl PolicyArgs {
    /// Decides, if a policy is given: its layers become the session's mask.
    pub fn decide(
        &self,
        session: &mut Session,
        source: &Source,
        prompt: usize,
        new: usize,
    ) -> Result<Option<PolicyReport>> {
        let (Some(file), Some(device)) = (&self.policy, &self.device) else { return Ok(None) };
        let policy = read(file)?;
        let profile = energy::profile(device)?;
        let grid = Grid::named(&self.grid)?;
        let conditions = self.conditions(&grid)?;
        let no_adapter = || Error::value("--policy", "there is no adapter whose layers it could choose");
        let adapter = session.lora.adapter.ok_or_else(no_adapter)?;
        let (engine, scheme) = (&session.engine, policy.scheme());
        if scheme.adapters.len() > 1 {
            let reason = "it chooses among adapters, and generate has one";
            return Err(Error::file(file, reason));
        }
        let name = source.model.file_name().unwrap_or_default().to_string_lossy();
        let (spec, refusal) = (engine.spec(), |error| Error::file(file, error));
        let shape = shape_name(spec);
        let task = self.task.as_deref();
        let cell = scheme.find(&profile.name, &name, &shape, spec.layers, task).map_err(refusal)?;
        let adapted = engine.priced_plan(adapter).ok_or_else(no_adapter)?;
        let inference = Inference {
            prompt: prompt as u32,
            new: new.clamp(1, spec.context) as u32,
            rank: engine.adapter_rank(adapter) as u32,
            lora_on_prompt: session.lora.from != wattle_engine::ActiveFrom::Generated,
        };
        let weights = weight_bytes(engine.weights());
        let workload = Workload::new(&**engine.plan(), &adapted, spec.layers, weights, inference);
        let priced = [workload.price(&profile)];
        let case = Case { profile: &profile, priced: &priced, inference, conditions };
        let decision = policy.decide(cell, &case)?;
        let chosen = LayerMask::of(decision.layers.iter().copied());
        session.lora.layers = LayerMask(session.lora.layers.0 & chosen.0);
        Ok(Some(PolicyReport {
            policy: file.display().to_string(),
            why: why(&decision, &grid),
            device: profile.name.clone(),
            grid,
            task: scheme.model(cell).tasks[cell.task].name.clone(),
            battery: conditions.battery,
            surface_c: conditions.temperatures.surface_c,
            decision,
        }))
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
