//! Speed of decoding, from tokens as they come.

use std::time::Instant;

/// Counts the tokens of several paths while all of them are decoding: from when the last has its first token until
/// the first has its last.
pub(crate) struct Meter {
    counts: Vec<usize>,
    /// Tokens of a path when it ends.
    limit: usize,
    waiting: usize,
    start: Option<Instant>,
    end: Option<Instant>,
    tokens: usize,
}

impl Meter {
    /// For so many paths of `limit` tokens each.
    pub fn new(paths: usize, limit: usize) -> Self {
        Self { counts: vec![0; paths], limit, waiting: paths, start: None, end: None, tokens: 0 }
    }

    /// Takes note of a token; returns whether it is the path's first.
    pub fn token(&mut self, path: usize, now: Instant) -> bool {
        self.counts[path] += 1;
        let first = self.counts[path] == 1;
        self.waiting -= usize::from(first);
        match (self.start, self.end) {
            (None, _) if self.waiting == 0 => self.start = Some(now),
            (Some(_), None) => {
                self.tokens += 1;
                self.end = (self.counts[path] >= self.limit).then_some(now);
            }
            _ => {}
        }
        first
    }

    /// Tokens per second, summed over paths; 0 when there was no time in which all were decoding.
    pub fn rate(&self) -> f64 {
        let (Some(start), Some(end)) = (self.start, self.end) else { return 0.0 };
        let seconds = (end - start).as_secs_f64();
        if seconds > 0.0 { self.tokens as f64 / seconds } else { 0.0 }
    }
}

/// The median of some values, and how far apart the largest and the smallest are as a share of it.
pub(crate) fn median_and_spread(mut values: Vec<f64>) -> (f64, f64) {
    values.sort_by(f64::total_cmp);
    let n = values.len();
    let (Some(low), Some(high)) = (values.first(), values.last()) else { return (0.0, 0.0) };
    let median = (values[(n - 1) / 2] + values[n / 2]) / 2.0;
    (median, if median > 0.0 { (high - low) / median } else { 0.0 })
}

/// Mean and standard deviation (n − 1) of values; 0 without enough of them.
pub(crate) fn mean_sd(values: &[f64]) -> [f64; 2] {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n.max(1.0);
    let squares: f64 = values.iter().map(|v| (v - mean) * (v - mean)).sum();
    [mean, if n > 1.0 { (squares / (n - 1.0)).sqrt() } else { 0.0 }]
}

/// Mean and half of its 95 % interval (Student's t); 0 without enough values.
pub(crate) fn interval(values: &[f64]) -> [f64; 2] {
    let [mean, sd] = mean_sd(values);
    let n = values.len();
    [mean, if n > 1 { t_95(n - 1) * sd / (n as f64).sqrt() } else { 0.0 }]
}

/// The mean of paired ratios (geometric), and the interval in which it lies with a probability of 95 %.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Ratio {
    pub mean: f64,
    /// The interval's ends; `None` with fewer than two pairs.
    pub interval: Option<[f64; 2]>,
}

impl Ratio {
    /// Of ratios that were measured one after the other: their logarithms are taken as normally distributed, with an
    /// unknown variance (Student's t). `None` where there is no usable ratio.
    pub fn of(ratios: &[f64]) -> Option<Self> {
        let logs: Vec<f64> = ratios.iter().map(|ratio| ratio.ln()).filter(|log| log.is_finite()).collect();
        let [mean, half] = interval(&logs);
        let ends = || [(mean - half).exp(), (mean + half).exp()];
        (!logs.is_empty()).then(|| Self { mean: mean.exp(), interval: (logs.len() > 1).then(ends) })
    }
}

/// Between −t and t lie 95 % of Student's distribution with so many (at least 1) degrees of freedom.
fn t_95(degrees: usize) -> f64 {
    const FIRST: [f64; 10] = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228];
    // Further on three terms of its expansion (Abramowitz & Stegun 26.7.5) are exact to some ten-thousandths.
    let expansion = |n: f64| 1.959_96 + (2.372_3 + (2.822_5 + 2.555_9 / n) / n) / n;
    degrees.checked_sub(1).and_then(|i| FIRST.get(i).copied()).unwrap_or_else(|| expansion(degrees as f64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn an_interval_needs_two_ratios_and_shrinks_with_their_number() {
        assert_eq!(Ratio::of(&[]), None);
        assert_eq!(Ratio::of(&[f64::NAN, f64::INFINITY, 0.0]), None);
        let one = Ratio::of(&[1.5]).unwrap();
        assert!((one.mean - 1.5).abs() < 1e-12 && one.interval.is_none());
        // ln: ±0.1, so the mean is 1, the deviation 0.1 √2, and the half width t · 0.1.
        let two = Ratio::of(&[0.1_f64.exp(), (-0.1_f64).exp()]).unwrap();
        let [low, high] = two.interval.unwrap();
        assert!((two.mean - 1.0).abs() < 1e-12);
        assert!((high - 1.2706_f64.exp()).abs() < 1e-9 && (low * high - 1.0).abs() < 1e-9, "{low} {high}");
        let many: Vec<f64> = (0..40).map(|i| if i % 2 == 0 { 1.1 } else { 1.0 / 1.1 }).collect();
        let [low, high] = Ratio::of(&many).unwrap().interval.unwrap();
        assert!(low > 0.96 && low < 1.0 && high > 1.0 && high < 1.04, "{low} {high}");
        assert!((t_95(11) - 2.2010).abs() < 5e-4 && (t_95(30) - 2.0423).abs() < 5e-4);
    }

    #[test]
    fn only_the_time_in_which_all_paths_decode_counts() {
        let zero = Instant::now();
        let at = |seconds| zero + Duration::from_secs(seconds);
        let mut meter = Meter::new(2, 3);
        assert!(meter.token(0, at(0)));
        assert!(meter.token(1, at(1)));
        assert!(!meter.token(0, at(2)));
        meter.token(1, at(2));
        meter.token(0, at(3));
        meter.token(1, at(30));
        assert_eq!(meter.rate(), 3.0 / 2.0);
    }

    #[test]
    fn the_median_of_an_even_number_lies_between_the_middle_two() {
        assert_eq!(median_and_spread(vec![4.0, 1.0, 3.0, 2.0]), (2.5, 3.0 / 2.5));
        assert_eq!(median_and_spread(vec![7.0]), (7.0, 0.0));
        assert_eq!(median_and_spread(Vec::new()), (0.0, 0.0));
    }
}
