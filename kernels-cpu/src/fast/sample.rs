//! Draws a token per sample, without sorting the vocabulary.

use wattle_shaders::{Sample, Sampled};

use super::math::{EXPONENTIAL, exp};
use super::simd::{LANES, Simd, Work, run};
use super::threads::lines;
use super::tile::{maximum, sum};
use crate::State;
use crate::philox::uniform;

/// Logits that are summed together: how many threads there are changes no sum.
const PART: usize = 1 << 13;

/// `logits` \[samples, vocab\]; `states` has an entry per sequence and takes the drawn tokens, after all draws.
pub fn sample(samples: &[Sample], vocab: usize, logits: &[f32], states: &mut [State]) -> Vec<Sampled> {
    let likely = logprobs(vocab, logits);
    let all_greedy = samples.iter().all(|sample| sample.temperature == 0.0);
    let mut drawn = vec![Sampled::default(); samples.len()];
    lines(&mut drawn, 1, if all_greedy { 0 } else { EXPONENTIAL * logits.len() }, |first, drawn| {
        for (index, drawn) in (first..).zip(drawn) {
            let (sample, logits) = (&samples[index], &logits[index * vocab..][..vocab]);
            let state = &states[sample.sequence as usize];
            *drawn = run(Draw { sample, logits, likely: likely[index], state });
        }
    });
    for (sample, sampled) in samples.iter().zip(&drawn) {
        states[sample.sequence as usize].draw(sampled.token);
    }
    drawn
}

/// What the logits of a sample say, before it is drawn.
#[derive(Clone, Copy)]
struct Likely {
    /// All are finite.
    finite: bool,
    max: f32,
    /// The first that has the maximum.
    token: usize,
    /// ln Σ e^(logit − max).
    log_total: f64,
}

/// For each sample, over all threads.
fn logprobs(vocab: usize, logits: &[f32]) -> Vec<Likely> {
    let per = vocab.div_ceil(PART);
    let of_parts = |index: usize| {
        let (sample, start) = (index / per, index % per * PART);
        &logits[sample * vocab..][start..vocab.min(start + PART)]
    };
    let count = logits.len() / vocab * per;
    let mut scans = vec![(false, 0.0); count];
    lines(&mut scans, 1, EXPONENTIAL * logits.len(), |first, scans| {
        (first..).zip(scans).for_each(|(index, scan)| *scan = run(Scan(of_parts(index))));
    });
    let maxima: Vec<f32> = scans
        .chunks(per)
        .map(|scans| scans.iter().fold(f32::NEG_INFINITY, |max, scan| max.max(scan.1)))
        .collect();
    let mut masses = vec![0.0; count];
    lines(&mut masses, 1, EXPONENTIAL * logits.len(), |first, masses| {
        for (index, mass) in (first..).zip(masses) {
            *mass = run(Mass { logits: of_parts(index), max: maxima[index / per] });
        }
    });
    let likely = |(sample, &max): (usize, &f32)| {
        let own = sample * per..(sample + 1) * per;
        let (scans, masses) = (&scans[own.clone()], &masses[own.clone()]);
        let part = scans.iter().position(|scan| scan.1 == max).unwrap_or(0);
        let within = of_parts(own.start + part).iter().position(|&logit| logit == max).unwrap_or(0);
        let (finite, log_total) = (scans.iter().all(|scan| scan.0), masses.iter().sum::<f64>().ln());
        Likely { finite, max, token: part * PART + within, log_total }
    };
    maxima.iter().enumerate().map(likely).collect()
}

/// Whether all of some logits are finite, and the largest.
struct Scan<'a>(&'a [f32]);

impl Work for Scan<'_> {
    type Output = (bool, f32);

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Self::Output {
        // NaN and infinities are what times zero is not zero.
        (sum(simd, self.0, |logit| logit * 0.0) == 0.0, maximum(self.0))
    }
}

/// Σ e^(logit − max).
struct Mass<'a> {
    logits: &'a [f32],
    max: f32,
}

impl Work for Mass<'_> {
    type Output = f64;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f64 {
        let mut lanes = [0.0; LANES];
        let (chunks, rest) = self.logits.as_chunks::<LANES>();
        for chunk in chunks {
            for (lane, &logit) in lanes.iter_mut().zip(chunk) {
                *lane += f64::from(exp(simd, logit - self.max));
            }
        }
        for (lane, &logit) in lanes.iter_mut().zip(rest) {
            *lane += f64::from(exp(simd, logit - self.max));
        }
        lanes.iter().sum()
    }
}

struct Draw<'a> {
    sample: &'a Sample,
    logits: &'a [f32],
    likely: Likely,
    state: &'a State,
}

impl Work for Draw<'_> {
    type Output = Sampled;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Sampled {
        let Likely { finite, max, log_total, .. } = self.likely;
        if !finite {
            return Sampled { token: 0, logprob: f32::NAN, invalid: 1, closed: 0 };
        }
        let token = self.token(simd);
        let logprob = f64::from(self.logits[token]) - f64::from(max) - log_total;
        Sampled { token: token as u32, logprob: logprob as f32, invalid: 0, closed: 0 }
    }
}

impl Draw<'_> {
    #[inline(always)]
    fn token<S: Simd>(&self, simd: S) -> usize {
        let sample = self.sample;
        if sample.temperature == 0.0 && sample.penalty == 1.0 {
            return self.likely.token;
        }
        let mut logits = self.logits.to_vec();
        if sample.penalty != 1.0 {
            for (token, logit) in (0..).zip(&mut logits) {
                if self.state.has_seen(token) {
                    *logit = if *logit > 0.0 { *logit / sample.penalty } else { *logit * sample.penalty };
                }
            }
        }
        if sample.temperature == 0.0 {
            let max = maximum(&logits);
            return logits.iter().position(|&logit| logit == max).unwrap_or(0);
        }
        logits.iter_mut().for_each(|logit| *logit /= sample.temperature);
        let max = maximum(&logits);
        let mut threshold = f32::NEG_INFINITY;
        if (1..logits.len()).contains(&(sample.top_k as usize)) {
            let mut order = logits.clone();
            threshold = *order.select_nth_unstable_by(sample.top_k as usize - 1, |a, b| b.total_cmp(a)).1;
        }
        let (mut masses, mut total) = masses(simd, &logits, max, threshold);
        if sample.top_p < 1.0 {
            let threshold = top_p(f64::from(sample.top_p), &logits, &masses, total);
            masses.iter_mut().zip(&logits).for_each(|(mass, &logit)| {
                if logit < threshold {
                    *mass = 0.0;
                }
            });
            total = masses.iter().map(|&mass| f64::from(mass)).sum();
        }
        let wanted = f64::from(uniform(sample)) * total;
        let mut sum = 0.0;
        let drawn = masses.iter().position(|&mass| {
            sum += f64::from(mass);
            sum > wanted
        });
        drawn.or_else(|| masses.iter().rposition(|&mass| mass > 0.0)).unwrap_or(0)
    }
}

/// e^(logit − max) of the logits that are not below `threshold`, 0 for others; and their sum.
#[inline(always)]
fn masses<S: Simd>(simd: S, logits: &[f32], max: f32, threshold: f32) -> (Vec<f32>, f64) {
    let mut masses = logits.to_vec();
    // A plain loop over memory that is there: it is compiled for the instruction set, and vectorized.
    for logit in &mut masses {
        let mass = exp(simd, *logit - max);
        *logit = if *logit >= threshold { mass } else { 0.0 };
    }
    let total = masses.iter().map(|&mass| f64::from(mass)).sum();
    (masses, total)
}

/// The least logit of the smallest set of largest masses that reaches `top_p` of the total.
///
/// All masses below (1 − top_p) / n of the total make up less than what may be left out: only the others are sorted.
fn top_p(top_p: f64, logits: &[f32], masses: &[f32], total: f64) -> f32 {
    let least = (1.0 - top_p) * total / masses.len() as f64;
    let likely = masses.iter().zip(logits).filter(|(mass, _)| f64::from(**mass) >= least);
    let mut likely: Vec<(f32, f32)> = likely.map(|(&mass, &logit)| (logit, mass)).collect();
    likely.sort_unstable_by(|a, b| b.0.total_cmp(&a.0));
    let mut sum = 0.0;
    for &(logit, mass) in &likely {
        sum += f64::from(mass);
        if sum >= top_p * total {
            return logit;
        }
    }
    likely.last().map_or(f32::NEG_INFINITY, |&(logit, _)| logit)
}
