//! The carbon-first reward, as its paper has it and as wattle treats it.

use serde::{Deserialize, Serialize};

use crate::profile::Profile;
use crate::simulate::{Conditions, LOW_BATTERY, Outcome};

/// c_target of the paper \[mg CO2e\].
pub const PAPER_TARGET_MG: f64 = 0.35;
/// α's threshold in the paper; the default's τ.
pub const GATE: f64 = 0.55;
/// α below the gate in the paper.
const ALPHA: f64 = 0.25;
/// Inferences per joule at which tanh has its scale.
const ENERGY_SCALE: f64 = 12.0;
/// Of a temperature limit passed by this much the penalty is 1 \[K\] (*ours*).
const PENALTY_K: f64 = 10.0;

/// Which reading of the reward.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Carbon is what the choice changes (operational), measured against the device's own target; one gate (*ours*).
    #[default]
    Treated,
    /// Equations 2 and 3 as they stand: total carbon against 0.35 mg, and both gates.
    PaperLiteral,
}

/// R = w_c·R_c + w_e·R_e·1(R_c ≥ τ) + w_p·R_p − Σ w_i·P_i (carbon-first LoRA scaling, equation 2).
///
/// The weights are not published: these are *ours*.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Which reading.
    pub mode: Mode,
    /// w_c.
    pub carbon: f64,
    /// w_e.
    pub energy: f64,
    /// w_p.
    pub performance: f64,
    /// w_i of temperature, latency, memory and power.
    pub penalties: [f64; 4],
    /// τ; negative: no gate.
    pub tau: f64,
}

impl Default for Rule {
    fn default() -> Self {
        let mode = Mode::Treated;
        Self { mode, carbon: 0.5, energy: 0.2, performance: 0.3, penalties: [0.5; 4], tau: GATE }
    }
}

/// A reward and what it is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Reward {
    /// R.
    pub total: f64,
    /// R_c.
    pub carbon: f64,
    /// R_e with α, before the gate.
    pub energy: f64,
    /// R_p.
    pub performance: f64,
    /// P_i of temperature, latency, memory and power, each 0 (kept) to 1.
    pub penalties: [f64; 4],
    /// Whether the gate was open.
    pub gate: bool,
}

impl Rule {
    /// The share of its target, c/c*, at which carbon closes the gate: R_c = τ at 1/τ − 1.
    pub fn gate_share(&self) -> f64 {
        if self.tau > 0.0 { 1.0 / self.tau - 1.0 } else { f64::INFINITY }
    }

    /// The reward of an inference that scored `score` on a device whose carbon target is `target_mg`.
    pub fn reward(
        &self,
        profile: &Profile,
        target_mg: f64,
        conditions: &Conditions,
        outcome: &Outcome,
        score: f64,
    ) -> Reward {
        let (actual_mg, target_mg) = match self.mode {
            Mode::Treated => (outcome.carbon.operational_mg, target_mg),
            Mode::PaperLiteral => (outcome.carbon.total_mg(), PAPER_TARGET_MG),
        };
        let carbon = 1.0 / (1.0 + actual_mg / target_mg);
        let alpha = if self.mode == Mode::PaperLiteral && carbon < GATE { ALPHA } else { 1.0 };
        let energy = (outcome.per_joule() / ENERGY_SCALE).tanh() * alpha;
        let (performance, gate) = (score.clamp(0.0, 1.0), carbon >= self.tau);
        let penalties = penalties(profile, conditions, outcome);
        let punished: f64 = self.penalties.iter().zip(penalties).map(|(w, p)| w * p).sum();
        let gated = if gate { energy } else { 0.0 };
        let total = self.carbon * carbon + self.energy * gated + self.performance * performance - punished;
        Reward { total, carbon, energy, performance, penalties, gate }
    }
}

/// How far each limit was passed: temperature by 10 K, the others by once the limit is 1.
fn penalties(profile: &Profile, conditions: &Conditions, outcome: &Outcome) -> [f64; 4] {
    let over_k = (outcome.hottest_surface_c - profile.throttle.surface_limit_c)
        .max(outcome.hottest_junction_c - profile.throttle.junction_limit_c);
    let over = |value: f64, limit: f64| (value / limit - 1.0).clamp(0.0, 1.0);
    [
        (over_k / PENALTY_K).clamp(0.0, 1.0),
        over(outcome.latency_s, profile.latency_limit_s),
        outcome.memory_pressure.map_or(1.0, |pressure| (pressure - 1.0).clamp(0.0, 1.0)),
        over(outcome.power_w, power_limit_w(profile, conditions.battery)),
    ]
}

/// The power limit at this charge: half below 20 %.
pub fn power_limit_w(profile: &Profile, battery: f64) -> f64 {
    let low = profile.battery_wh > 0.0 && battery < LOW_BATTERY;
    profile.power_limit_w * if low { 0.5 } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Carbon;
    use crate::thermal::Temperatures;

    fn outcome(operational_mg: f64, embodied_mg: f64, energy_j: f64) -> Outcome {
        Outcome {
            first_token_s: 0.1,
            latency_s: 1.0,
            dynamic_j: energy_j,
            energy_j,
            power_w: energy_j,
            temperatures: Temperatures::even(30.0),
            hottest_surface_c: 30.0,
            hottest_junction_c: 30.0,
            throttled: 0.0,
            memory_bytes: 1.0,
            memory_pressure: Some(1.0),
            thermal_yield: 1.0,
            carbon: Carbon { operational_mg, embodied_mg },
        }
    }

    fn tablet() -> (Profile, Conditions) {
        (Profile::named("tablet").unwrap(), Conditions::rested(25.0, 475.0))
    }

    #[test]
    fn the_default_by_hand() {
        let ((tablet, conditions), rule) = (tablet(), Rule::default());
        // c = 0.6 c*: R_c = 0.625, the gate is open; 2 J are 0.5 inferences a joule.
        let reward = rule.reward(&tablet, 0.5, &conditions, &outcome(0.3, 40.0, 2.0), 0.8);
        assert!((reward.carbon - 0.625).abs() < 1e-12 && reward.gate);
        let expected = 0.5 * 0.625 + 0.2 * (0.5f64 / 12.0).tanh() + 0.3 * 0.8;
        assert!((reward.total - expected).abs() < 1e-12);
        // The gate closes at c = 0.82 c*, 1.02 of the median that c* is 1.25 times of.
        let at = |c: f64| rule.reward(&tablet, 1.25, &conditions, &outcome(c, 0.0, 2.0), 0.8).gate;
        assert!(at(1.02) && !at(1.03));
    }

    #[test]
    fn as_the_paper_has_it_the_gate_does_not_open_on_embodied_carbon() {
        let (tablet, conditions) = tablet();
        let rule = Rule { mode: Mode::PaperLiteral, ..Rule::default() };
        let reward = rule.reward(&tablet, 1e9, &conditions, &outcome(0.01, 46.59, 0.05), 0.5);
        assert!((reward.carbon - 1.0 / (1.0 + 46.6 / 0.35)).abs() < 1e-12 && !reward.gate);
        assert!((reward.energy - 0.25 * (20.0f64 / 12.0).tanh()).abs() < 1e-12);
        let open = rule.reward(&tablet, 1e9, &conditions, &outcome(0.01, 0.2, 0.05), 0.5);
        assert!(open.gate && (open.energy - (20.0f64 / 12.0).tanh()).abs() < 1e-12);
    }

    #[test]
    fn limits_that_are_passed_cost() {
        let ((tablet, conditions), rule) = (tablet(), Rule::default());
        let bad = Outcome {
            hottest_surface_c: tablet.throttle.surface_limit_c + 5.0,
            latency_s: 1.5 * tablet.latency_limit_s,
            memory_pressure: None,
            power_w: 0.75 * tablet.power_limit_w,
            ..outcome(0.3, 0.0, 2.0)
        };
        let reward = rule.reward(&tablet, 0.5, &conditions, &bad, 0.8);
        for (penalty, expected) in reward.penalties.iter().zip([0.5, 0.5, 1.0, 0.0]) {
            assert!((penalty - expected).abs() < 1e-12, "{:?}", reward.penalties);
        }
        let low = Conditions { battery: 0.1, ..conditions };
        let penalties = rule.reward(&tablet, 0.5, &low, &bad, 0.8).penalties;
        assert!((penalties[3] - 0.5).abs() < 1e-12, "half the power on a low battery");
        let good = rule.reward(&tablet, 0.5, &conditions, &outcome(0.3, 0.0, 2.0), 0.8);
        assert!(good.total - reward.total > 0.9);
    }
}
