//! What the network sees of a device and a request.

use crate::profile::Profile;
use crate::reward::power_limit_w;
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
        self.devices.len() + self.models.len() + self.task_names().len() + STATE + 2 * FORECAST + 1
    }

    /// What the network sees: which cell, the device's state, and what the fewest and the most layers would lead to
    /// there (their costs are known before anything runs), with how many layers the carbon gate lets through.
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
        let gate = self.rule.gate_share();
        let ends = range.map(|count| {
            case.outcome(Choice { layers: self.quality(cell).pick(count), adapter: 0 }).map(|outcome| {
                let share = outcome.carbon.operational_mg / self.devices[cell.device].target_mg;
                (share, forecast(case, &outcome, share, gate))
            })
        });
        features.extend(ends.iter().flat_map(|end| end.map_or([0.0; FORECAST], |(_, forecast)| forecast)));
        let shares = ends.map(|end| end.map_or(f64::NAN, |(share, _)| share));
        // Bounded at nine layers: the paper's devices allow up to six beyond their fewest, and those too must be told apart.
        features.push(bounded(admitted(range, shares, gate) / 3.0));
        features
    }
}

/// What a choice leads to that takes this share of the carbon target.
fn forecast(case: &Case, outcome: &Outcome, share: f64, gate: f64) -> [f32; FORECAST] {
    let profile = case.profile;
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

/// How many layers beyond the fewest the carbon gate lets through: where a line through both ends of the range meets it.
fn admitted([fewest, most]: [usize; 2], [least, largest]: [f64; 2], gate: f64) -> f64 {
    (gate - least) * (most - fewest) as f64 / (largest - least)
}

/// A feature in ±3; 0 where it is not a number.
fn bounded(value: f64) -> f32 {
    if value.is_nan() { 0.0 } else { value.clamp(-3.0, 3.0) as f32 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;
    use crate::reward::Rule;
    use crate::scheme::ActionKind;
    use crate::world::{Split, tests::world};

    #[test]
    fn the_gate_admits_layers_along_a_line() {
        assert!((admitted([2, 8], [0.70, 0.94], 0.82) - 3.0).abs() < 1e-12);
        assert!(admitted([2, 8], [0.85, 0.94], 0.82) < 0.0, "not even the fewest");
        assert_eq!(bounded(admitted([2, 8], [0.7, 0.7], 0.82)), 3.0, "all, where layers cost nothing");
        assert_eq!(bounded(admitted([2, 2], [0.7, 0.7], 0.82)), 0.0, "nothing to choose");
        assert_eq!(
            bounded(admitted([2, 8], [0.7, 0.9], Rule { tau: -1.0, ..Rule::default() }.gate_share())),
            3.0
        );
    }

    #[test]
    fn an_adapter_without_costs_leaves_its_features_empty() {
        let world = world(ActionKind::Count);
        let situation = world.draw(world.scheme.cells()[0], Split::Train, &mut Random(0));
        let case = Case { priced: &[], ..world.case(&situation) };
        let features = world.scheme.observe(situation.cell, &case);
        assert_eq!(features.len(), world.scheme.observation_len());
        assert!(features[features.len() - 2 * FORECAST - 1..].iter().all(|&x| x == 0.0));
    }
}
