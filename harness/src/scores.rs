//! How a policy does against fixed choices and against the best there is, cell by cell, in a simulated world.

use serde::Serialize;
use wattle_policy::scheme::{Cell, Choice};
use wattle_policy::simulate::Outcome;
use wattle_policy::world::{Situation, Split, World};
use wattle_policy::{Random, TrainedPolicy};

use crate::error::{Error, Result};

/// One device, model and task.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Row {
    pub device: String,
    pub model: String,
    pub task: String,
    /// Whether scores come from real runs.
    pub measured_quality: bool,
    pub policy_reward: f64,
    /// The best choice of each situation, by trying all.
    pub oracle_reward: f64,
    /// The worst.
    pub worst_reward: f64,
    pub always_min_reward: f64,
    pub always_max_reward: f64,
    /// The mean over all choices: what choosing at random expects.
    pub random_reward: f64,
    /// (oracle − policy) / (oracle − worst); 0 where all choices are alike.
    pub regret: f64,
    /// Mean number of layers that the policy chose.
    pub layers: f64,
    /// Mean number of layers of the oracle.
    pub oracle_layers: f64,
    pub inf_per_j: f64,
    pub operational_mg: f64,
    pub embodied_mg: f64,
    /// Score per mg CO2e, operational and embodied.
    pub performance_per_mg: f64,
    /// How often the carbon gate was open, 0 to 1.
    pub gate_open: f64,
    /// Situations in which temperature, latency, memory and power limits were passed, 0 to 1.
    pub violations: [f64; 4],
}

impl Row {
    /// (oracle − reward) / (oracle − worst); 0 where all choices are alike.
    pub fn regret_of(&self, reward: f64) -> f64 {
        let range = self.oracle_reward - self.worst_reward;
        if range > 0.0 { (self.oracle_reward - reward) / range } else { 0.0 }
    }

    /// What is wrong with the policy here: too far from the best choice, or worse than the fewest layers.
    fn complaint(&self, most_regret: f64) -> Option<String> {
        let name = format!("{}, {}, {}", self.device, self.model, self.task);
        if self.regret > most_regret {
            return Some(format!("{name}: {:.2} % from the best choice", self.regret * 100.0));
        }
        // Sums of rewards in another order differ by rounding.
        let worse = self.policy_reward < self.always_min_reward - 1e-9;
        worse.then(|| format!("{name}: worse than the fewest layers"))
    }
}

/// Fails where a policy is further than `most_regret` from the best choice, or worse than the fewest layers.
///
/// # Errors
/// Names every such cell.
pub(crate) fn check(rows: &[Row], most_regret: f64) -> Result<()> {
    if most_regret.is_nan() {
        return Err(Error::value("--most-regret", "NaN, expected a number of percent"));
    }
    let complaints: Vec<String> = rows.iter().filter_map(|row| row.complaint(most_regret)).collect();
    if complaints.is_empty() {
        return Ok(());
    }
    let (bad, all) = (complaints.len(), rows.len());
    Err(Error::Failed(format!("policy: {bad} of {all} cells: {}", complaints.join("; "))))
}

/// Situations per cell.
pub(crate) const SITUATIONS: usize = 60;

/// How a policy does in every cell.
pub(crate) fn rows(world: &World, policy: &TrainedPolicy, split: Split, seed: u64) -> Vec<Row> {
    world.scheme.cells().into_iter().map(|cell| row(world, policy, split, seed, cell)).collect()
}

/// What draws a cell's situations.
pub(crate) fn seed_of(seed: u64, cell: Cell) -> u64 {
    let index = ((cell.device * 1000 + cell.model) * 1000 + cell.task) as u64;
    seed.wrapping_mul(0x9E37_79B9).wrapping_add(index)
}

/// A cell's situations: the same for everybody who chooses.
pub(crate) fn situations(world: &World, split: Split, seed: u64, cell: Cell) -> Vec<Situation> {
    let mut random = Random(seed_of(seed, cell));
    (0..SITUATIONS).map(|_| world.draw(cell, split, &mut random)).collect()
}

fn row(world: &World, policy: &TrainedPolicy, split: Split, seed: u64, cell: Cell) -> Row {
    let (model, choices) = (world.scheme.model(cell), world.choices(cell));
    let mut row = Row {
        device: world.profiles[cell.device].name.clone(),
        model: model.name.clone(),
        task: model.tasks[cell.task].name.clone(),
        measured_quality: world.scheme.quality(cell).is_measured(),
        ..Row::default()
    };
    for situation in situations(world, split, seed, cell) {
        let chosen = policy.choose(cell, &world.case(&situation));
        add(&mut row, world, &situation, chosen, &choices);
    }
    row.regret = row.regret_of(row.policy_reward);
    row
}

/// Adds one situation's share to every mean.
fn add(row: &mut Row, world: &World, situation: &Situation, chosen: Choice, choices: &[Choice]) {
    let n = SITUATIONS as f64;
    let total = |choice: Choice| world.judge(situation, choice).map_or(0.0, |(_, reward)| reward.total);
    let all: Vec<f64> = choices.iter().map(|&choice| total(choice)).collect();
    let pick = |better: fn(f64, f64) -> bool| {
        (1..all.len()).fold(0, |best, i| if better(all[i], all[best]) { i } else { best })
    };
    let (best, worst) = (pick(|a, b| a > b), pick(|a, b| a < b));
    row.oracle_reward += all[best] / n;
    row.worst_reward += all[worst] / n;
    row.random_reward += all.iter().sum::<f64>() / all.len() as f64 / n;
    row.oracle_layers += f64::from(choices[best].layers.count_ones()) / n;
    row.always_min_reward += total(world.least(situation.cell)) / n;
    row.always_max_reward += total(world.most(situation.cell)) / n;
    let Some((outcome, reward)) = world.judge(situation, chosen) else { return };
    let Outcome { carbon, .. } = outcome;
    row.policy_reward += reward.total / n;
    row.layers += f64::from(chosen.layers.count_ones()) / n;
    row.inf_per_j += outcome.per_joule() / n;
    row.operational_mg += carbon.operational_mg / n;
    row.embodied_mg += carbon.embodied_mg / n;
    row.performance_per_mg += reward.performance / carbon.total_mg() / n;
    row.gate_open += if reward.gate { 1.0 / n } else { 0.0 };
    for (sum, penalty) in row.violations.iter_mut().zip(reward.penalties) {
        *sum += if penalty > 0.0 { 1.0 / n } else { 0.0 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_is_refused_where_it_is_far_from_the_best_or_worse_than_the_fewest_layers() {
        let row = Row { oracle_reward: 1.0, worst_reward: 0.0, policy_reward: 0.98, ..Row::default() };
        let good = Row { regret: row.regret_of(0.98), always_min_reward: 0.98, ..row };
        assert!((good.regret - 0.02).abs() < 1e-12);
        assert!(check(std::slice::from_ref(&good), 0.03).is_ok());
        let far = Row { device: "watch".into(), regret: 0.031, ..good.clone() };
        let worse = Row { device: "tablet".into(), always_min_reward: 0.99, ..good.clone() };
        let message = check(&[good, far, worse], 0.03).unwrap_err().to_string();
        assert!(
            message.contains("2 of 3") && message.contains("watch") && message.contains("3.10 %"),
            "{message}"
        );
        assert!(message.contains("tablet, , : worse than the fewest layers"), "{message}");
        let alike = Row { oracle_reward: 0.5, worst_reward: 0.5, ..Row::default() };
        assert_eq!(alike.regret_of(0.5), 0.0);
    }
}
