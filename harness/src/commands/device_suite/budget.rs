//! Time, passed around: what does not fit is named.

use std::time::{Duration, Instant};

/// Time that is left, and what was left out.
pub(super) struct Budget {
    end: Instant,
    left_out: Vec<String>,
}

impl Budget {
    /// So much from now on.
    pub fn new(limit: Duration) -> Self {
        Self { end: Instant::now() + limit, left_out: Vec::new() }
    }

    /// What is left.
    pub fn left(&self) -> Duration {
        self.end.saturating_duration_since(Instant::now())
    }

    /// Whether so much is left; where it is not, `what` is noted as left out.
    pub fn has(&mut self, needed: Duration, what: &str) -> bool {
        let left = self.left();
        let enough = left >= needed && !left.is_zero();
        if !enough {
            let (needed, left) = (needed.as_secs_f64(), left.as_secs_f64());
            self.leave_out(what, format!("takes about {needed:.0} s, {left:.0} s were left"));
        }
        enough
    }

    /// Notes something as left out.
    pub fn leave_out(&mut self, what: &str, reason: impl std::fmt::Display) {
        self.left_out.push(format!("{what}: {reason}"));
    }

    /// All that was left out, with reasons.
    pub fn left_out(&self) -> &[String] {
        &self.left_out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_named() {
        let mut budget = Budget::new(Duration::from_secs(3600));
        assert!(budget.has(Duration::from_secs(60), "short"));
        assert!(!budget.has(Duration::from_secs(7200), "long"));
        budget.leave_out("broken", "no such thing");
        assert!(budget.left_out()[0].starts_with("long: takes about 7200 s"));
        assert_eq!(budget.left_out()[1..], ["broken: no such thing"]);
        assert!(!Budget::new(Duration::ZERO).has(Duration::ZERO, "nothing"));
    }
}
