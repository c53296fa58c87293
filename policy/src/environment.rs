//! Environments in the manner of gymnasium: `reset`, `step`, and an end that is either part of the task (terminated) or
//! a cut (truncated).

use std::sync::Arc;

use crate::random::Random;
use crate::reward::Reward;
use crate::scheme::{Cell, Choice};
use crate::simulate::{self, Conditions, Outcome};
use crate::thermal::Temperatures;
use crate::world::{Situation, Split, World};

/// What an agent sees, and what it may do.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observation {
    /// Features.
    pub features: Vec<f32>,
    /// Which values of each component may be chosen, component after component.
    pub mask: Vec<bool>,
}

/// What an action led to.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// What the agent sees now.
    pub observation: Observation,
    /// Its reward.
    pub reward: f64,
    /// The episode has come to its own end: nothing more could have been earned.
    pub terminated: bool,
    /// The episode was cut off: more could have been earned.
    pub truncated: bool,
}

/// Something to act in. An action has one value per component.
pub trait Environment {
    /// How many values each component of an action has.
    fn components(&self) -> Vec<usize>;
    /// How many features an observation has.
    fn features(&self) -> usize;
    /// Begins an episode.
    fn reset(&mut self, seed: u64) -> Observation;
    /// Acts. After an end the next call must be `reset`.
    fn step(&mut self, action: &[usize]) -> Step;
}

/// Shows random values; the right action is to repeat them (Stable-Baselines3's identity test, in its three forms).
#[derive(Clone, Debug)]
pub struct Identity {
    components: Vec<usize>,
    one_hot: bool,
    state: Vec<usize>,
    steps: usize,
    random: Random,
}

impl Identity {
    /// Steps of an episode, which is its best return too.
    pub const STEPS: usize = 100;

    /// One of n values.
    pub fn discrete(n: usize) -> Self {
        Self::new(vec![n], true)
    }

    /// Several values, all of which must be right.
    pub fn multi_discrete(components: &[usize]) -> Self {
        Self::new(components.to_vec(), true)
    }

    /// n bits, all of which must be right, shown as they are.
    pub fn multi_binary(n: usize) -> Self {
        Self::new(vec![2; n], false)
    }

    fn new(components: Vec<usize>, one_hot: bool) -> Self {
        Self { components, one_hot, state: Vec::new(), steps: 0, random: Random(0) }
    }

    fn observation(&mut self) -> Observation {
        self.state = self.components.iter().map(|&n| self.random.below(n)).collect();
        let pairs = self.state.iter().zip(&self.components);
        let features = match self.one_hot {
            true => pairs.flat_map(|(&s, &n)| (0..n).map(move |i| if i == s { 1.0 } else { 0.0 })).collect(),
            false => self.state.iter().map(|&bit| bit as f32).collect(),
        };
        Observation { features, mask: vec![true; self.components.iter().sum()] }
    }
}

impl Environment for Identity {
    fn components(&self) -> Vec<usize> {
        self.components.clone()
    }

    fn features(&self) -> usize {
        if self.one_hot { self.components.iter().sum() } else { self.components.len() }
    }

    fn reset(&mut self, seed: u64) -> Observation {
        (self.random, self.steps) = (Random(seed), 0);
        self.observation()
    }

    fn step(&mut self, action: &[usize]) -> Step {
        let reward = if action == self.state { 1.0 } else { 0.0 };
        self.steps += 1;
        let truncated = self.steps >= Self::STEPS;
        Step { observation: self.observation(), reward, terminated: false, truncated }
    }
}

/// Requests that have nothing to do with each other: each is an episode of its own. Half of those to train on are moved
/// to the carbon gate.
#[derive(Clone, Debug)]
pub struct Requests {
    world: Arc<World>,
    cells: Vec<Cell>,
    split: Split,
    random: Random,
    now: Option<Situation>,
}

impl Requests {
    /// Of these cells, in turn at random.
    pub fn new(world: Arc<World>, cells: Vec<Cell>, split: Split) -> Self {
        Self { world, cells, split, random: Random(0), now: None }
    }

    fn observation(&mut self) -> Observation {
        let cell = self.cells[self.random.below(self.cells.len())];
        let mut situation = self.world.draw(cell, self.split, &mut self.random);
        if self.split == Split::Train && self.random.unit() < 0.5 {
            situation = self.world.at_the_gate(situation, &mut self.random);
        }
        self.now = Some(situation);
        Observation { features: self.world.observe(&situation), mask: self.world.mask(cell) }
    }
}

impl Environment for Requests {
    fn components(&self) -> Vec<usize> {
        self.world.scheme.components()
    }

    fn features(&self) -> usize {
        self.world.scheme.observation_len()
    }

    fn reset(&mut self, seed: u64) -> Observation {
        self.random = Random(seed);
        self.observation()
    }

    fn step(&mut self, action: &[usize]) -> Step {
        let judged = self
            .now
            .and_then(|situation| self.world.judge(&situation, self.world.choice(situation.cell, action)));
        let reward = judged.map_or(0.0, |(_, reward)| reward.total);
        Step { observation: self.observation(), reward, terminated: true, truncated: false }
    }
}

/// A day with one device, model and task: bursts of requests every quarter of an hour. Heat and charge carry over, the
/// grid is cleaner around noon, the device charges at night (all of it *ours*).
#[derive(Clone, Debug)]
pub struct Day {
    world: Arc<World>,
    cells: Vec<Cell>,
    split: Split,
    random: Random,
    situation: Option<Situation>,
    /// The day's mean grid \[mg/Wh\] and air \[°C\].
    mean: [f64; 2],
    slot: usize,
    /// Since `reset`.
    pub log: Vec<(Choice, Outcome, Reward)>,
}

impl Day {
    /// Slots of a day.
    pub const SLOTS: usize = 96;
    const SLOT_S: f64 = 86_400.0 / Self::SLOTS as f64;
    /// The device charges from midnight until this slot.
    const CHARGED: usize = 24;

    /// A day of one of these cells.
    pub fn new(world: Arc<World>, cells: Vec<Cell>, split: Split) -> Self {
        let (random, mean) = (Random(0), [0.0; 2]);
        Self { world, cells, split, random, situation: None, mean, slot: 0, log: Vec::new() }
    }

    /// The situation that the next action is for.
    pub fn situation(&self) -> Option<&Situation> {
        self.situation.as_ref()
    }

    /// Sun: −1 at night, 1 at noon.
    fn sun(&self) -> f64 {
        -(std::f64::consts::TAU * self.slot as f64 / Self::SLOTS as f64).cos()
    }

    fn enter_slot(&mut self, situation: &mut Situation) {
        let fresh = self.world.draw(situation.cell, self.split, &mut self.random);
        situation.length = fresh.length;
        situation.conditions.grid_mg_per_wh = self.mean[0] * (1.0 - 0.3 * self.sun());
        situation.conditions.ambient_c = self.mean[1] + 4.0 * self.sun();
        if self.slot < Self::CHARGED {
            situation.conditions.battery = (situation.conditions.battery + 0.1).min(1.0);
        }
    }

    fn observation(&self) -> Observation {
        let Some(situation) = &self.situation else { return Observation::default() };
        Observation { features: self.world.observe(situation), mask: self.world.mask(situation.cell) }
    }

    /// A burst of requests and then nothing for the rest of the slot; returns the last request's outcome and the energy
    /// of the slot \[J\].
    fn burst(&mut self, situation: &mut Situation, choice: Choice) -> Option<(Outcome, f64)> {
        let requests = 1 + self.random.below(8);
        let (mut seconds, mut energy_j, mut last) = (0.0, 0.0, None);
        for _ in 0..requests {
            let outcome = self.world.outcome(situation, choice)?;
            situation.conditions.temperatures = outcome.temperatures;
            seconds += outcome.latency_s;
            energy_j += outcome.energy_j;
            last = Some(outcome);
        }
        let profile = &self.world.profiles[situation.cell.device];
        let rest = simulate::idle(profile, &situation.conditions, (Self::SLOT_S - seconds).max(0.0));
        situation.conditions.temperatures = rest.0;
        Some((last?, energy_j))
    }
    /// What follows when nothing can be done any more.
    fn nothing() -> Step {
        Step { observation: Observation::default(), reward: 0.0, terminated: true, truncated: false }
    }

    /// A slot with this choice.
    pub fn advance(&mut self, choice: Choice) -> Step {
        let Some(mut situation) = self.situation else { return Self::nothing() };
        let before = situation;
        let Some((outcome, energy_j)) = self.burst(&mut situation, choice) else { return Self::nothing() };
        let reward = self.world.reward(&before, choice, &outcome);
        self.log.push((choice, outcome, reward));
        let battery_j = self.world.profiles[situation.cell.device].battery_wh * 3600.0;
        if battery_j > 0.0 {
            // Everything else that the device does empties it in 40 hours (*ours*).
            let background = 1.0 / (40.0 * 3600.0 / Self::SLOT_S);
            situation.conditions.battery -= energy_j / battery_j + background;
        }
        let terminated = situation.conditions.battery <= 0.0;
        self.slot += 1;
        self.enter_slot(&mut situation);
        self.situation = Some(situation);
        let truncated = !terminated && self.slot >= Self::SLOTS;
        Step { observation: self.observation(), reward: reward.total, terminated, truncated }
    }
}

impl Environment for Day {
    fn components(&self) -> Vec<usize> {
        self.world.scheme.components()
    }

    fn features(&self) -> usize {
        self.world.scheme.observation_len()
    }

    fn reset(&mut self, seed: u64) -> Observation {
        (self.random, self.slot) = (Random(seed), 0);
        self.log.clear();
        let cell = self.cells[self.random.below(self.cells.len())];
        let mut situation = self.world.draw(cell, self.split, &mut self.random);
        let Conditions { grid_mg_per_wh, ambient_c, .. } = situation.conditions;
        self.mean = [grid_mg_per_wh, ambient_c];
        situation.conditions.temperatures = Temperatures::even(ambient_c - 4.0);
        self.enter_slot(&mut situation);
        self.situation = Some(situation);
        self.observation()
    }

    fn step(&mut self, action: &[usize]) -> Step {
        let choice = self.situation.map(|situation| self.world.choice(situation.cell, action));
        choice.map_or_else(Self::nothing, |choice| self.advance(choice))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheme::ActionKind;
    use crate::world::tests::world;

    #[test]
    fn identity_rewards_repeating_what_is_shown() {
        for mut env in [Identity::discrete(4), Identity::multi_discrete(&[4, 4]), Identity::multi_binary(4)] {
            let first = env.reset(7);
            assert_eq!(first.features.len(), env.features());
            assert_eq!(first, env.reset(7), "the same seed shows the same");
            let mut total = 0.0;
            for step in 1..=Identity::STEPS {
                let right = env.state.clone();
                let result = env.step(&right);
                total += result.reward;
                assert_eq!((result.terminated, result.truncated), (false, step == Identity::STEPS));
            }
            assert_eq!(total, 100.0);
            env.reset(1);
            let wrong: Vec<_> = env.state.iter().map(|s| s + 1).collect();
            assert_eq!(env.step(&wrong).reward, 0.0);
        }
    }

    #[test]
    fn a_request_is_an_episode_that_repeats() {
        let world = Arc::new(world(ActionKind::Count));
        let cells = world.scheme.cells();
        let mut env = Requests::new(Arc::clone(&world), cells, Split::Train);
        let observation = env.reset(3);
        let step = env.step(&[2]);
        assert!(step.terminated && !step.truncated && step.reward.is_finite());
        assert_eq!(observation, env.reset(3));
        assert_eq!(step, env.step(&[2]));
    }

    #[test]
    fn a_day_ends_in_the_evening_or_with_the_battery() {
        let world = Arc::new(world(ActionKind::Count));
        let mut env = Day::new(Arc::clone(&world), vec![world.scheme.cells()[0]], Split::Train);
        env.reset(5);
        let mut steps = 0;
        let last = loop {
            steps += 1;
            let step = env.step(&[1]);
            if step.terminated || step.truncated {
                break step;
            }
        };
        assert!(last.truncated && !last.terminated && steps == Day::SLOTS && env.log.len() == steps);
        let mut empty = Day::new(Arc::clone(&world), vec![world.scheme.cells()[0]], Split::Train);
        empty.reset(5);
        empty.slot = Day::CHARGED;
        if let Some(situation) = &mut empty.situation {
            situation.conditions.battery = 1e-6;
        }
        let step = empty.step(&[1]);
        assert!(step.terminated && !step.truncated);
    }
}
