//! That it learns, that its gradients are right, that it repeats.

use wattle_policy::environment::{Environment, Identity};
use wattle_policy::{Network, Random};

use super::gradients::{Sample, gradients};
use super::parameters::Parameters;
use super::ppo::sample;
use super::rollout::Transition;
use super::*;

/// The settings of part B's learning test: the defaults, with γ 0.4.
const IDENTITY: Settings = Settings {
    rate: 3e-4,
    rollout: 2048,
    minibatch: 64,
    epochs: 10,
    gamma: 0.4,
    lambda: 0.95,
    clip: 0.2,
    entropy_weight: 0.0,
    value_weight: 0.5,
    max_norm: 0.5,
    anneal: false,
};

/// Mean returns of five seeds after 3,000 steps.
fn returns(environment: Identity) -> Vec<f64> {
    let run = |seed| {
        let mut trainer = Trainer::new(environment.clone(), IDENTITY, seed);
        trainer.train(3000, |_, _| Ok(())).unwrap();
        assert_eq!(trainer.state.steps, 3000);
        trainer.evaluate(20, 1000 + seed).unwrap()
    };
    (0..5).map(run).collect()
}

#[test]
fn it_learns_to_repeat_one_of_four() {
    let returns = returns(Identity::discrete(4));
    assert!(returns.iter().all(|&mean| mean >= 90.0), "{returns:?}");
}

#[test]
fn it_learns_to_repeat_two_of_four() {
    let returns = returns(Identity::multi_discrete(&[4, 4]));
    assert!(returns.iter().all(|&mean| mean >= 90.0), "{returns:?}");
}

#[test]
fn it_learns_to_repeat_four_bits() {
    let returns = returns(Identity::multi_binary(4));
    assert!(returns.iter().all(|&mean| mean >= 90.0), "{returns:?}");
}

/// A batch with forbidden values and ratios on both sides of the clip.
fn batch(features: usize) -> Vec<Transition> {
    let mut random = Random(5);
    let step = |i: usize| Transition {
        features: (0..features).map(|_| random.normal() as f32).collect(),
        mask: vec![true, true, i.is_multiple_of(2), true, true],
        action: vec![i % 2, (i / 2) % 2],
        log_probability: [-1.0, -1.6, -1.2][i % 3],
        value: 0.1,
        reward: 0.0,
        last: false,
    };
    (0..6).map(step).collect()
}

#[test]
fn gradients_are_what_differences_of_the_loss_say() {
    let settings = Settings { entropy_weight: 0.02, ..IDENTITY };
    let components = [3, 2];
    let mut parameters = Parameters::new(3, 5, &mut Random(2));
    // The end of the policy is nearly 0 at the beginning: made larger, or there would be little to see.
    parameters.0[4].values.iter_mut().for_each(|w| *w *= 60.0);
    let steps = batch(3);
    let samples = || -> Vec<Sample> {
        let sample = |(i, step)| Sample { step, advantage: 0.7 - 0.4 * i as f32, target: 0.3 * i as f32 };
        steps.iter().enumerate().map(sample).collect()
    };
    let loss =
        |parameters: &Parameters| gradients(parameters, &components, &samples(), &settings).unwrap().0.total;
    let (_, exact) = gradients(&parameters, &components, &samples(), &settings).unwrap();
    let mut checked = 0;
    for (tensor, gradient) in exact.iter().enumerate() {
        let largest = gradient.iter().fold(0f32, |max, g| max.max(g.abs()));
        for index in (0..gradient.len()).step_by(gradient.len().div_ceil(12)) {
            let moved = |by: f32| {
                let mut moved = parameters.clone();
                moved.0[tensor].values[index] += by;
                loss(&moved)
            };
            // Central differences in f32: rounding of the loss (6e-8) over 4e-3, and the third derivative's term.
            let difference = (moved(2e-3) - moved(-2e-3)) / 4e-3;
            let tolerance = 2e-4 + 0.02 * largest;
            assert!(
                (difference - gradient[index]).abs() < tolerance,
                "{tensor} {index}: {difference} {gradient:?}"
            );
            checked += 1;
        }
        assert!(largest > 1e-3, "tensor {tensor} has no gradient to speak of");
    }
    assert!(checked > 80);
}

#[test]
fn a_clipped_ratio_has_no_gradient() {
    let parameters = Parameters::new(3, 5, &mut Random(2));
    let mut steps = batch(3);
    // Far more probable now than then, and good: clipped, so that only the value's network learns.
    steps.iter_mut().for_each(|step| step.log_probability = -9.0);
    let samples: Vec<Sample> =
        steps.iter().map(|step| Sample { step, advantage: 1.0, target: 0.0 }).collect();
    let (losses, gradients) = gradients(&parameters, &[3, 2], &samples, &IDENTITY).unwrap();
    assert_eq!(losses.clip_fraction, 1.0);
    assert!((losses.policy + 1.2).abs() < 1e-6);
    assert!(gradients[..6].iter().flatten().all(|&g| g == 0.0));
    assert!(gradients[6..].iter().flatten().any(|&g| g != 0.0));
}

#[test]
fn the_network_that_acts_is_the_one_that_learns() {
    let parameters = Parameters::new(3, 5, &mut Random(9));
    let [policy, value] = parameters.networks().unwrap();
    let mut steps = batch(3);
    for step in &mut steps {
        let logits = policy.logits(&step.features);
        step.log_probability = log_probability(&logits, step);
        step.value = value.logits(&step.features)[0];
    }
    let sample = |step| Sample { step, advantage: 1.0, target: 0.0 };
    let samples: Vec<Sample> = steps.iter().map(sample).collect();
    let (losses, _) = gradients(&parameters, &[3, 2], &samples, &IDENTITY).unwrap();
    // Ratios are 1: the loss is minus the mean advantage, and candle's value is the plain one.
    assert!((losses.policy + 1.0).abs() < 1e-5 && losses.approx_kl.abs() < 1e-6);
    let mean = steps.iter().map(|step| step.value * step.value).sum::<f32>() / steps.len() as f32;
    assert!((losses.value - mean).abs() < 1e-5 * mean.max(1.0));
}

fn log_probability(logits: &[f32], step: &Transition) -> f32 {
    let mut start = 0;
    let mut sum = 0.0;
    for (&size, &action) in [3usize, 2].iter().zip(&step.action) {
        let allowed = (start..start + size).filter(|&i| step.mask[i]);
        let total: f32 = allowed.map(|i| logits[i].exp()).sum();
        sum += logits[start + action] - total.ln();
        start += size;
    }
    sum
}

#[test]
fn what_may_not_be_chosen_is_not_drawn() {
    let network = Network::new(vec![(vec![0.0; 5], vec![9.0, 0.0, 1.0, 0.0, 0.0])]).unwrap();
    let observation = wattle_policy::environment::Observation {
        features: vec![1.0],
        mask: vec![false, true, true, true, false],
    };
    let mut random = Random(0);
    let mut seen = [0; 3];
    for _ in 0..500 {
        let (action, log_probability) = sample(&network, &observation, &[3, 2], &mut random);
        assert_eq!(action[1], 0);
        seen[action[0]] += 1;
        let of_two = [1.0 / (1.0 + 1f32.exp()), 1f32.exp() / (1.0 + 1f32.exp())];
        assert!((log_probability - of_two[action[0] - 1].ln()).abs() < 1e-6);
    }
    // e/(1 + e) of 500 is 366.
    assert!(seen[0] == 0 && (330..400).contains(&seen[2]), "{seen:?}");
}

#[test]
fn a_training_repeats_and_resumes_bit_for_bit() {
    let settings = Settings { rollout: 128, epochs: 2, ..IDENTITY };
    let trainer = |seed| Trainer::new(Identity::discrete(4), settings, seed);
    let (mut one, mut two, mut other) = (trainer(3), trainer(3), trainer(4));
    let mut log = Vec::new();
    one.train(384, |diagnostics, _| {
        log.push(*diagnostics);
        Ok(())
    })
    .unwrap();
    assert_eq!(log.len(), 3);
    assert!(log.iter().all(|d| d.entropy > 0.0 && d.approx_kl.is_finite() && d.clip_fraction <= 1.0));
    two.train(256, |_, _| Ok(())).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("checkpoint.safetensors");
    two.save(&file).unwrap();
    other.resume(&file).unwrap();
    assert_eq!(two.state, other.state);
    other.train(384, |_, _| Ok(())).unwrap();
    assert_eq!(one.state, other.state);
    let mut wider = Trainer::new(Identity::discrete(5), settings, 0);
    let message = wider.resume(&file).unwrap_err().to_string();
    assert!(message.contains("checkpoint.safetensors") && message.contains("policy.0.weight"), "{message}");
    assert!(wider.environment.reset(0).features.len() == 5);
}
