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

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

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
