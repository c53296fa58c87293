//! What the network sees of a device and a request.

use crate::profile::Profile;
use crate::reward::{GATE, power_limit_w};
use crate::scheme::{Cell, Choice, Scheme};
use crate::simulate::{self, Conditions, Outcome};
use crate::workload::{Inference, Priced};

/// A device that is to run an inference of a model: what an observation and an outcome are made of.
#[derive(Clone, Copy, Debug)]
pub struct Case<'a> {
    /// The device.
    pub profile: &'a Profile,
    /// Costs of the inference with each adapter.
    pub priced: &'a [Priced],
    /// The inference.
    pub inference: Inference,
    /// The device's state.
    pub conditions: Conditions,
}

impl Case<'_> {
    /// What a choice leads to.
    pub fn outcome(&self, choice: Choice) -> Option<Outcome> {
        let priced = self.priced.get(choice.adapter)?;
        Some(simulate::run(self.profile, priced, &self.inference, choice.layers, &self.conditions))
    }
}

/// Features of the state that do not depend on the forecast.
const STATE: usize = 7;
/// Features of each of the two forecasts.
const FORECAST: usize = 6;

impl Scheme {
    /// How many features an observation has.
    pub fn observation_len(&self) -> usize {
        self.devices.len() + self.models.len() + self.task_names().len() + STATE + 2 * FORECAST
    }

    /// What the network sees: which cell, the device's state, and what the fewest and the most layers would lead to
    /// there (their costs are known before anything runs).
    pub fn observe(&self, cell: Cell, case: &Case) -> Vec<f32> {
        let tasks = self.task_names();
        let task = tasks.iter().position(|&name| name == self.model(cell).tasks[cell.task].name);
        let one_hot =
            |n: usize, index: Option<usize>| (0..n).map(move |i| if Some(i) == index { 1.0 } else { 0.0 });
        let mut features: Vec<f32> = one_hot(self.devices.len(), Some(cell.device)).collect();
        features.extend(one_hot(self.models.len(), Some(cell.model)));
        features.extend(one_hot(tasks.len(), task));
        let (now, limits) = (case.conditions.temperatures, case.profile.throttle);
        let state: [f64; STATE] = [
            (case.conditions.grid_mg_per_wh.max(1.0) / 200.0).ln() / 2.0,
            case.conditions.battery,
            (case.conditions.ambient_c - 25.0) / 15.0,
            (limits.surface_limit_c - now.surface_c) / 20.0,
            (limits.junction_limit_c - now.junction_c) / 60.0,
            f64::from(case.inference.prompt).log2() / 8.0,
            f64::from(case.inference.new).log2() / 8.0,
        ];
        features.extend(state.map(bounded));
        let range = case.profile.layer_range(self.model(cell).layers);
        for count in range {
            let choice = Choice { layers: self.quality(cell).pick(count), adapter: 0 };
            features.extend(self.forecast(cell, case, choice));
        }
        features
    }

    fn forecast(&self, cell: Cell, case: &Case, choice: Choice) -> [f32; FORECAST] {
        let Some(outcome) = case.outcome(choice) else { return [0.0; FORECAST] };
        let profile = case.profile;
        let share = outcome.carbon.operational_mg / self.devices[cell.device].target_mg;
        // Where the gate opens: R_c = τ at a share of 1/τ − 1.
        let gate = 1.0 / GATE - 1.0;
        let features: [f64; FORECAST] = [
            share,
            (share - gate) * 20.0,
            outcome.latency_s / profile.latency_limit_s,
            outcome.power_w / power_limit_w(profile, case.conditions.battery),
            (outcome.hottest_surface_c - profile.throttle.surface_limit_c) / 5.0,
            outcome.throttled,
        ];
        features.map(bounded)
    }
}

/// A feature in ±3; 0 where it is not a number.
fn bounded(value: f64) -> f32 {
    if value.is_nan() { 0.0 } else { value.clamp(-3.0, 3.0) as f32 }
}
