//! Proximal policy optimization with the defaults of Stable-Baselines3 (Raffin et al. 2021).

use std::path::Path;

use serde::{Deserialize, Serialize};
use wattle_policy::environment::{Environment, Observation};
use wattle_policy::{Network, Random};

use super::checkpoint;
use super::gradients::{Losses, Sample, gradients};
use super::parameters::{Adam, Parameters};
use super::rollout::{Transition, advantages, explained_variance};
use crate::error::{Error, Result};

/// How to train.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Settings {
    /// Adam's step.
    pub rate: f32,
    /// Steps between updates.
    pub rollout: usize,
    /// Of an update.
    pub minibatch: usize,
    /// Times that each step is learned from.
    pub epochs: usize,
    /// Discount.
    pub gamma: f32,
    /// Of generalized advantage estimation.
    pub lambda: f32,
    /// Ratios count up to 1 ± this.
    pub clip: f32,
    /// Weight of the entropy.
    pub entropy_weight: f32,
    /// Weight of the value's loss.
    pub value_weight: f32,
    /// Gradients are cut to this norm.
    pub max_norm: f32,
    /// Whether `rate` falls to 0 over the training (off in Stable-Baselines3).
    pub anneal: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            rate: 3e-4,
            rollout: 2048,
            minibatch: 64,
            epochs: 10,
            gamma: 0.99,
            lambda: 0.95,
            clip: 0.2,
            entropy_weight: 0.0,
            value_weight: 0.5,
            max_norm: 0.5,
            anneal: false,
        }
    }
}

/// What one update was like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Diagnostics {
    /// Steps so far.
    pub steps: u64,
    /// Mean reward of the steps that were learned from.
    pub mean_reward: f64,
    /// Mean return of the episodes that ended among them.
    pub mean_return: f64,
    pub approx_kl: f64,
    pub clip_fraction: f64,
    pub explained_variance: f64,
    pub entropy: f64,
    pub policy_loss: f64,
    pub value_loss: f64,
}

/// A training under way. Rollouts begin with a new episode, so that the state between two of them is the parameters,
/// Adam's moments and one random number: what a checkpoint keeps.
pub(crate) struct Trainer<E> {
    pub environment: E,
    pub settings: Settings,
    pub state: State,
    components: Vec<usize>,
}

/// What a checkpoint keeps.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct State {
    pub parameters: Parameters,
    pub adam: Adam,
    pub random: Random,
    /// Steps so far.
    pub steps: u64,
}

impl<E: Environment> Trainer<E> {
    /// Begins: the seed fixes everything.
    pub fn new(environment: E, settings: Settings, seed: u64) -> Self {
        let mut random = Random(seed);
        let components = environment.components();
        let parameters = Parameters::new(environment.features(), components.iter().sum(), &mut random);
        let adam = Adam::new(&parameters);
        Self { environment, settings, state: State { parameters, adam, random, steps: 0 }, components }
    }

    /// Goes on from a checkpoint.
    pub fn resume(&mut self, file: &Path) -> Result<()> {
        self.state = checkpoint::read(file, &self.state.parameters)?;
        Ok(())
    }

    /// Writes a checkpoint.
    pub fn save(&self, file: &Path) -> Result<()> {
        checkpoint::write(file, &self.state)
    }

    /// Trains until so many steps have been taken in all; the last rollout is as short as that makes it.
    pub fn train(
        &mut self,
        steps: u64,
        mut seen: impl FnMut(&Diagnostics, &Self) -> Result<()>,
    ) -> Result<()> {
        while self.state.steps < steps {
            let rollout = (steps - self.state.steps).min(self.settings.rollout as u64);
            let progress = self.state.steps as f32 / steps as f32;
            let diagnostics = self.iterate(rollout as usize, progress)?;
            seen(&diagnostics, self)?;
        }
        Ok(())
    }

    /// Collects steps and learns from them.
    fn iterate(&mut self, count: usize, progress: f32) -> Result<Diagnostics> {
        let (steps, after, returns) = self.collect(count)?;
        let Settings { gamma, lambda, rate, anneal, .. } = self.settings;
        let advantages = advantages(&steps, after, gamma, lambda);
        let targets: Vec<f32> = steps.iter().zip(&advantages).map(|(step, a)| step.value + a).collect();
        let values: Vec<f32> = steps.iter().map(|step| step.value).collect();
        let rate = if anneal { rate * (1.0 - progress) } else { rate };
        let (mut sums, mut updates) = (Losses::default(), 0.0);
        let mut order: Vec<usize> = (0..steps.len()).collect();
        for _ in 0..self.settings.epochs {
            self.state.random.shuffle(&mut order);
            for chunk in order.chunks(self.settings.minibatch.max(1)) {
                let normal = normalized(chunk.iter().map(|&i| advantages[i]).collect());
                let pairs = chunk.iter().zip(normal);
                let sample = |(&i, advantage)| Sample { step: &steps[i], advantage, target: targets[i] };
                let batch: Vec<Sample> = pairs.map(sample).collect();
                let State { parameters, adam, .. } = &mut self.state;
                let (losses, gradients) = gradients(parameters, &self.components, &batch, &self.settings)?;
                if !losses.total.is_finite() {
                    return Err(Error::Failed("training: the loss is not finite".into()));
                }
                adam.update(parameters, &gradients, rate, self.settings.max_norm);
                sums.policy += losses.policy;
                sums.value += losses.value;
                sums.entropy += losses.entropy;
                sums.approx_kl += losses.approx_kl;
                sums.clip_fraction += losses.clip_fraction;
                updates += 1.0;
            }
        }
        let mean = |sum: f32| f64::from(sum) / f64::max(updates, 1.0);
        let rewards: f64 = steps.iter().map(|step| f64::from(step.reward)).sum();
        Ok(Diagnostics {
            steps: self.state.steps,
            mean_reward: rewards / steps.len().max(1) as f64,
            mean_return: returns.iter().sum::<f64>() / returns.len().max(1) as f64,
            approx_kl: mean(sums.approx_kl),
            clip_fraction: mean(sums.clip_fraction),
            explained_variance: explained_variance(&values, &targets),
            entropy: mean(sums.entropy),
            policy_loss: mean(sums.policy),
            value_loss: mean(sums.value),
        })
    }

    /// Acts `count` times. Returns the steps, the value of what follows the last, and the returns of whole episodes.
    fn collect(&mut self, count: usize) -> Result<(Vec<Transition>, f32, Vec<f64>)> {
        let [policy, value] = self.state.parameters.networks()?;
        let random = &mut self.state.random;
        let worth = |features: &[f32]| value.logits(features).first().copied().unwrap_or(0.0);
        let mut now = self.environment.reset(random.bits());
        let (mut steps, mut returns, mut sum) = (Vec::with_capacity(count), Vec::new(), 0.0);
        for _ in 0..count {
            let (action, log_probability) = sample(&policy, &now, &self.components, random);
            let value = worth(&now.features);
            let result = self.environment.step(&action);
            sum += result.reward;
            let mut reward = result.reward as f32;
            if result.truncated {
                reward += self.settings.gamma * worth(&result.observation.features);
            }
            let last = result.terminated || result.truncated;
            let Observation { features, mask } = std::mem::replace(&mut now, result.observation);
            steps.push(Transition { features, mask, action, log_probability, value, reward, last });
            if last {
                returns.push(std::mem::take(&mut sum));
                now = self.environment.reset(random.bits());
            }
        }
        self.state.steps += count as u64;
        Ok((steps, worth(&now.features), returns))
    }

    /// For tests: mean return of episodes in which the most probable action is taken.
    #[cfg(test)]
    pub fn evaluate(&mut self, episodes: usize, seed: u64) -> Result<f64> {
        let [policy, _] = self.state.parameters.networks()?;
        let (mut total, mut random) = (0.0, Random(seed));
        for _ in 0..episodes {
            let mut now = self.environment.reset(random.bits());
            loop {
                let action = policy.decide(&now.features, &self.components, &now.mask);
                let result = self.environment.step(&action);
                total += result.reward;
                if result.terminated || result.truncated {
                    break;
                }
                now = result.observation;
            }
        }
        Ok(total / episodes.max(1) as f64)
    }
}

/// Less their mean, divided by their standard deviation (n − 1), as Stable-Baselines3 does it.
fn normalized(mut values: Vec<f32>) -> Vec<f32> {
    let n = values.len() as f32;
    if values.len() > 1 {
        let mean = values.iter().sum::<f32>() / n;
        let variance = values.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / (n - 1.0);
        let scale = variance.sqrt() + 1e-8;
        values.iter_mut().for_each(|x| *x = (*x - mean) / scale);
    }
    values
}

/// Draws an allowed value of every component; returns the action and its log-probability.
pub(super) fn sample(
    policy: &Network,
    now: &Observation,
    components: &[usize],
    random: &mut Random,
) -> (Vec<usize>, f32) {
    let logits = policy.logits(&now.features);
    let (mut start, mut sum) = (0, 0.0);
    let mut action = Vec::with_capacity(components.len());
    for &size in components {
        let allowed: Vec<usize> =
            (0..size).filter(|&i| now.mask.get(start + i).copied().unwrap_or(false)).collect();
        let logit = |i: usize| f64::from(logits.get(start + i).copied().unwrap_or(0.0));
        let highest = allowed.iter().map(|&i| logit(i)).fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = allowed.iter().map(|&i| (logit(i) - highest).exp()).collect();
        let total: f64 = weights.iter().sum();
        let mut left = random.unit() * total;
        let drawn = weights.iter().position(|weight| {
            left -= weight;
            left < 0.0
        });
        let drawn = drawn.unwrap_or(allowed.len().saturating_sub(1));
        action.push(allowed.get(drawn).copied().unwrap_or(0));
        sum += weights.get(drawn).map_or(0.0, |weight| (weight / total).ln());
        start += size;
    }
    (action, sum as f32)
}
