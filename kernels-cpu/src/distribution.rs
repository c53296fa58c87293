//! What a token is drawn from: the model's distribution after penalty, temperature, top-k and top-p.
//!
//! Penalty and temperature are single f32 roundings, so that equal logits stay equal on every device.

use wattle_shaders::Sample;

use crate::State;

/// The unnormalized probability of each token, 0 for those that are not kept. Greedy keeps one.
///
/// `raw` are finite logits \[vocab\]; `state` says which tokens the penalty meets.
pub fn masses(sample: &Sample, raw: &[f32], state: &State) -> Vec<f64> {
    let mut logits: Vec<f32> = (0..).zip(raw).map(|(token, &l)| penalized(sample, state, token, l)).collect();
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if sample.temperature == 0.0 {
        let first = logits.iter().position(|&l| l == max);
        return (0..raw.len()).map(|i| if Some(i) == first { 1.0 } else { 0.0 }).collect();
    }
    logits.iter_mut().for_each(|l| *l /= sample.temperature);
    let max = f64::from(max / sample.temperature);
    let mass = |l: f32| (f64::from(l) - max).exp();
    let threshold = threshold(sample, logits.clone(), mass);
    logits.iter().map(|&l| if l >= threshold { mass(l) } else { 0.0 }).collect()
}

/// A token's logit after the repetition penalty (Keskar et al. 2019, section 4.1).
fn penalized(sample: &Sample, state: &State, token: u32, logit: f32) -> f32 {
    match state.has_seen(token) {
        true if logit > 0.0 => logit / sample.penalty,
        true => logit * sample.penalty,
        false => logit,
    }
}

/// The least logit that top-k and top-p keep; ties with it are kept too.
fn threshold(sample: &Sample, mut logits: Vec<f32>, mass: impl Fn(f32) -> f64) -> f32 {
    logits.sort_by(|a, b| b.total_cmp(a));
    let mut threshold = f32::NEG_INFINITY;
    if (1..logits.len()).contains(&(sample.top_k as usize)) {
        threshold = logits[sample.top_k as usize - 1];
        logits.retain(|&l| l >= threshold);
    }
    if sample.top_p < 1.0 {
        let wanted = f64::from(sample.top_p) * logits.iter().map(|&l| mass(l)).sum::<f64>();
        let mut sum = 0.0;
        for l in logits {
            (threshold, sum) = (l, sum + mass(l));
            if sum >= wanted {
                break;
            }
        }
    }
    threshold
}
