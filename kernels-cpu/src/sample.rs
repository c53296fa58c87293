//! Draws a token per sample: the inverse of the cumulative distribution at a Philox number.

use wattle_shaders::{Sample, Sampled};

use crate::distribution::masses;
use crate::philox::uniform;
use crate::{Read, State};

/// `logits` \[samples, vocab\]; `states` has an entry per sequence and takes the drawn tokens. Draws of one step do
/// not see each other: the penalty meets what was seen before all of them.
pub fn plain(samples: &[Sample], vocab: usize, logits: &dyn Read, states: &mut [State]) -> Vec<Sampled> {
    let draw = |(line, sample): (usize, &Sample)| {
        let raw: Vec<f32> = (0..vocab).map(|i| logits.get(line * vocab + i)).collect();
        let state = &states[sample.sequence as usize];
        let valid = raw.iter().all(|logit| logit.is_finite());
        let token = if valid { invert(uniform(sample), &masses(sample, &raw, state)) } else { 0 };
        Sampled { token: token as u32, logprob: logprob(&raw, token), invalid: u32::from(!valid), closed: 0 }
    };
    let drawn: Vec<Sampled> = samples.iter().enumerate().map(draw).collect();
    for (sample, sampled) in samples.iter().zip(&drawn) {
        states[sample.sequence as usize].draw(sampled.token);
    }
    drawn
}

/// Natural log of a token's probability under the raw logits.
fn logprob(raw: &[f32], token: usize) -> f32 {
    let max = f64::from(raw.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let total: f64 = raw.iter().map(|&logit| (f64::from(logit) - max).exp()).sum();
    (f64::from(raw[token]) - max - total.ln()) as f32
}

/// The first token whose cumulative mass exceeds u × the total; else the last kept one.
fn invert(u: f32, masses: &[f64]) -> usize {
    let wanted = f64::from(u) * masses.iter().sum::<f64>();
    let cumulative = masses.iter().scan(0.0, |sum, mass| {
        *sum += mass;
        Some(*sum)
    });
    let drawn = cumulative.into_iter().position(|sum| sum > wanted);
    drawn.or(masses.iter().rposition(|&mass| mass > 0.0)).unwrap_or(0)
}
