//! The hostile comparison.

use std::fmt;

use wattle_engine::Sampled;

use crate::case::Seen;

/// What a passed check measured.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Checked {
    /// The largest error, relative to the largest magnitude of its tensor.
    pub error: f32,
    /// Compared elements.
    pub elements: usize,
}

/// Why a case failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The case.
    pub case: String,
    /// What was wrong.
    pub what: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.case, self.what)
    }
}

impl std::error::Error for Failure {}

/// Compares everything that was seen.
pub(crate) fn compare(reference: &[Seen], seen: &[Seen], tolerance: f32) -> Result<Checked, String> {
    if reference.len() != seen.len() {
        return Err(format!("{} answers, expected {}", seen.len(), reference.len()));
    }
    let mut checked = Checked::default();
    for pair in reference.iter().zip(seen) {
        let (name, expected, got) = match pair {
            (Seen::Floats(name, expected), Seen::Floats(_, got)) => {
                (name.as_str(), expected.clone(), got.clone())
            }
            (Seen::Drawn(expected), Seen::Drawn(got)) => {
                drawn(expected, got)?;
                // An invalid draw's logprob means nothing.
                let logprobs = |drawn: &[Sampled]| {
                    drawn
                        .iter()
                        .filter(|sampled| sampled.invalid == 0)
                        .map(|sampled| sampled.logprob)
                        .collect()
                };
                ("logprobs", logprobs(expected), logprobs(got))
            }
            _ => return Err("an answer of another kind".into()),
        };
        let error = floats(&expected, &got, tolerance).map_err(|what| format!("{name}{what}"))?;
        checked.error = checked.error.max(error);
        checked.elements += got.len();
    }
    Ok(checked)
}

/// The largest relative error. An element that the reference leaves alone (poisoned) must be left alone.
fn floats(expected: &[f32], got: &[f32], tolerance: f32) -> Result<f32, String> {
    if expected.len() != got.len() {
        return Err(format!(" has {} elements, expected {}", got.len(), expected.len()));
    }
    let finite = expected.iter().copied().filter(|x| !x.is_nan());
    let scale = finite.map(f32::abs).fold(f32::MIN_POSITIVE, f32::max);
    let mut largest = 0.0;
    for (index, (&expected, &got)) in expected.iter().zip(got).enumerate() {
        if expected.is_nan() && got.is_nan() {
            continue;
        }
        let error = (got - expected).abs() / scale;
        // Written so that NaN fails.
        if !(got.is_finite() && error <= tolerance) {
            return Err(format!(
                "[{index}] is {got}, expected {expected}: error {error:e}, allowed {tolerance:e}"
            ));
        }
        largest = error.max(largest);
    }
    Ok(largest)
}

/// Tokens and flags are the same: cases are chosen so that no draw is close to a border.
fn drawn(expected: &[Sampled], got: &[Sampled]) -> Result<(), String> {
    if expected.len() != got.len() {
        return Err(format!("{} samples, expected {}", got.len(), expected.len()));
    }
    for (index, (expected, got)) in expected.iter().zip(got).enumerate() {
        if expected.invalid != got.invalid {
            return Err(format!("sample {index}: invalid is {}, expected {}", got.invalid, expected.invalid));
        }
        if expected.invalid == 0 && expected.token != got.token {
            return Err(format!("sample {index} is token {}, expected {}", got.token, expected.token));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::floats;

    #[test]
    fn what_must_not_pass() {
        for got in [f32::NAN, f32::INFINITY, 1.1] {
            assert!(floats(&[1.0, 2.0], &[got, 2.0], 0.01).is_err(), "{got}");
        }
        assert!(floats(&[f32::NAN], &[0.0], 1.0).is_err(), "an element that must be left alone was written");
        assert!(floats(&[1.0], &[1.0, 1.0], 1.0).is_err());
        assert_eq!(floats(&[f32::NAN, 2.0, 0.0], &[f32::NAN, 2.0, 0.5], 0.25), Ok(0.25));
    }
}
