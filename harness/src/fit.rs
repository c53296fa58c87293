//! Coefficients of the proxy from measured windows, and how well they foretell kernels that they were not fitted to.

use std::fmt;

use serde::{Deserialize, Serialize};
use wattle_policy::{Coefficients, OpCost};

use crate::error::{Error, Result};
use crate::table::{Table, percent};

/// Work of one kernel that was repeated while a counter counted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Measured {
    /// The kernel's name, or what else was repeated; windows of one name are held out together.
    pub kernel: String,
    /// Of one repetition.
    pub flops: u64,
    pub dram_bytes: u64,
    pub on_chip_bytes: u64,
    pub launches: u64,
    /// Of one repetition \[s\].
    pub seconds: f64,
    /// Of one repetition, without what the idle machine draws \[J\].
    pub joules: f64,
}

impl Measured {
    /// What the proxy is linear in.
    fn terms(&self) -> [f64; TERMS] {
        let counts = [self.flops, self.dram_bytes, self.on_chip_bytes, self.launches].map(|n| n as f64);
        [counts[0], counts[1], counts[2], counts[3], self.seconds]
    }

    /// A kernel of this cost.
    pub fn new(kernel: &str, cost: &OpCost, seconds: f64, joules: f64) -> Self {
        Self {
            kernel: kernel.to_owned(),
            flops: cost.flops,
            dram_bytes: cost.dram_bytes(),
            on_chip_bytes: cost.on_chip_bytes,
            launches: cost.launches,
            seconds,
            joules,
        }
    }
}

/// Arithmetic, DRAM, on chip, launches, time.
const TERMS: usize = 5;

/// Fitted coefficients; `active_w` is power that busy time adds to idle power.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Fit {
    pub coefficients: Coefficients,
    pub active_w: f64,
}

impl Fit {
    /// Least squares of relative errors, no coefficient below 0 (Lawson & Hanson 1974).
    ///
    /// # Errors
    /// When a window has no joules, or there are none.
    pub fn of(windows: &[&Measured]) -> Result<Self> {
        if windows.is_empty() {
            return Err(Error::Failed("fit: no windows".into()));
        }
        if let Some(bad) =
            windows.iter().find(|w| !(w.joules > 0.0 && w.joules.is_finite() && w.seconds >= 0.0))
        {
            return Err(Error::Failed(format!("fit: a window of {} has {} J", bad.kernel, bad.joules)));
        }
        let rows: Vec<[f64; TERMS]> = windows.iter().map(|w| w.terms().map(|term| term / w.joules)).collect();
        let [flop_j, dram_byte_j, on_chip_byte_j, launch_j, active_w] = nnls(&rows, &vec![1.0; rows.len()]);
        Ok(Self { coefficients: Coefficients { flop_j, dram_byte_j, on_chip_byte_j, launch_j }, active_w })
    }

    /// Joules of a window's work.
    pub fn joules(&self, window: &Measured) -> f64 {
        let c = &self.coefficients;
        let weights = [c.flop_j, c.dram_byte_j, c.on_chip_byte_j, c.launch_j, self.active_w];
        weights.iter().zip(window.terms()).map(|(weight, term)| weight * term).sum()
    }
}

/// How well a model foretells.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Accuracy {
    /// Mean of |foretold − measured| / measured.
    pub mean_error: f64,
    /// Spearman's, of foretold against measured.
    pub rank_correlation: f64,
}

/// The proxy beside simpler models, each on kernels that it was not fitted to.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Validation {
    pub proxy: Accuracy,
    pub flops_only: Accuracy,
    pub bytes_only: Accuracy,
    pub time_and_power: Accuracy,
}

impl Validation {
    /// For a reader.
    pub fn table(&self) -> Table {
        let mut table = Table::new(["model", "mean error of what was held out", "rank correlation"]);
        let models = [
            ("proxy", self.proxy),
            ("flops only", self.flops_only),
            ("bytes only", self.bytes_only),
            ("time × power", self.time_and_power),
        ];
        for (name, accuracy) in models {
            let error = percent(accuracy.mean_error);
            table.row([name.to_owned(), error, format!("{:.3}", accuracy.rank_correlation)]);
        }
        table
    }
}

impl fmt::Display for Fit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let c = &self.coefficients;
        write!(
            f,
            "{:.3} pJ/flop, {:.3} pJ/byte DRAM, {:.3} pJ/byte on chip, {:.3} µJ/launch, {:.3} W while busy",
            c.flop_j * 1e12,
            c.dram_byte_j * 1e12,
            c.on_chip_byte_j * 1e12,
            c.launch_j * 1e6,
            self.active_w
        )
    }
}

/// Leaves one kernel out after another.
///
/// # Errors
/// With fewer than three kernels there is nothing to hold out.
pub(crate) fn validate(windows: &[Measured]) -> Result<Validation> {
    let mut kernels: Vec<&str> = windows.iter().map(|w| w.kernel.as_str()).collect();
    kernels.sort_unstable();
    kernels.dedup();
    if kernels.len() < 3 {
        return Err(Error::Failed(format!(
            "fit: {} kernels; at least 3 are needed to hold one out",
            kernels.len()
        )));
    }
    let measured: Vec<f64> = windows.iter().map(|w| w.joules).collect();
    let mut foretold = [const { Vec::new() }; 4];
    for window in windows {
        let others: Vec<&Measured> = windows.iter().filter(|w| w.kernel != window.kernel).collect();
        foretold[0].push(Fit::of(&others)?.joules(window));
        for (foretold, term) in foretold[1..].iter_mut().zip([0, 1, 4]) {
            foretold.push(single(&others, term) * window.terms()[term]);
        }
    }
    let [proxy, flops_only, bytes_only, time_and_power] = foretold.map(|values| Accuracy {
        mean_error: values.iter().zip(&measured).map(|(f, m)| (f - m).abs() / m).sum::<f64>()
            / measured.len() as f64,
        rank_correlation: rank_correlation(&values, &measured),
    });
    Ok(Validation { proxy, flops_only, bytes_only, time_and_power })
}

/// The one coefficient that fits one term best, in relative errors.
fn single(windows: &[&Measured], term: usize) -> f64 {
    let shares: Vec<f64> = windows.iter().map(|w| w.terms()[term] / w.joules).collect();
    let squares: f64 = shares.iter().map(|x| x * x).sum();
    if squares > 0.0 { shares.iter().sum::<f64>() / squares } else { 0.0 }
}

/// argmin ‖A x − b‖ with x ≥ 0, by the active-set method of Lawson & Hanson (1974, algorithm NNLS); columns are scaled to
/// length 1 first.
fn nnls<const N: usize>(a: &[[f64; N]], b: &[f64]) -> [f64; N] {
    let mut scale = [1.0; N];
    for (j, scale) in scale.iter_mut().enumerate() {
        let length = a.iter().map(|row| row[j] * row[j]).sum::<f64>().sqrt();
        *scale = if length > 0.0 { length } else { 1.0 };
    }
    // Normal equations: N is small, and scaled columns keep them well conditioned enough.
    let mut gram = [[0.0; N]; N];
    let mut right = [0.0; N];
    for (row, b) in a.iter().zip(b) {
        for i in 0..N {
            right[i] += row[i] / scale[i] * b;
            for j in 0..N {
                gram[i][j] += row[i] / scale[i] * row[j] / scale[j];
            }
        }
    }
    let mut x = [0.0; N];
    let mut free = [false; N];
    for _ in 0..10 * N {
        let slope = |j: usize| right[j] - (0..N).map(|k| gram[j][k] * x[k]).sum::<f64>();
        let steepest = (0..N).filter(|&j| !free[j]).max_by(|&i, &j| slope(i).total_cmp(&slope(j)));
        let Some(j) = steepest.filter(|&j| slope(j) > 1e-12) else { break };
        free[j] = true;
        loop {
            let z = solve(&gram, &right, &free);
            let Some(step) =
                (0..N).filter(|&j| free[j] && z[j] <= 0.0).map(|j| x[j] / (x[j] - z[j])).reduce(f64::min)
            else {
                x = z;
                break;
            };
            for j in 0..N {
                if free[j] {
                    x[j] += step * (z[j] - x[j]);
                    free[j] = x[j] > 1e-14;
                    x[j] = if free[j] { x[j] } else { 0.0 };
                }
            }
            if !free.contains(&true) {
                break;
            }
        }
    }
    std::array::from_fn(|j| x[j] / scale[j])
}

/// The unconstrained solution over the free columns, by elimination with pivots; others and dependent ones are 0.
fn solve<const N: usize>(gram: &[[f64; N]; N], right: &[f64; N], free: &[bool; N]) -> [f64; N] {
    let (mut m, mut r) = (*gram, *right);
    for i in 0..N {
        for j in 0..N {
            if !free[i] || !free[j] {
                m[i][j] = if i == j { 1.0 } else { 0.0 };
            }
        }
        if !free[i] {
            r[i] = 0.0;
        }
        // A whiff of ridge: columns that say the same share their weight.
        m[i][i] += 1e-12;
    }
    for i in 0..N {
        let pivot = (i..N).max_by(|&p, &q| m[p][i].abs().total_cmp(&m[q][i].abs())).unwrap_or(i);
        m.swap(i, pivot);
        r.swap(i, pivot);
        for k in i + 1..N {
            let factor = m[k][i] / m[i][i];
            let pivot = m[i];
            m[k].iter_mut().zip(pivot).skip(i).for_each(|(value, above)| *value -= factor * above);
            r[k] -= factor * r[i];
        }
    }
    let mut x = [0.0; N];
    for i in (0..N).rev() {
        let rest: f64 = (i + 1..N).map(|j| m[i][j] * x[j]).sum();
        x[i] = (r[i] - rest) / m[i][i];
    }
    x
}

/// Spearman's rank correlation; equal values share their mean rank. 0 where all values are equal.
pub(crate) fn rank_correlation(a: &[f64], b: &[f64]) -> f64 {
    let (a, b) = (ranks(a), ranks(b));
    let mean = |xs: &[f64]| xs.iter().sum::<f64>() / xs.len().max(1) as f64;
    let (ma, mb) = (mean(&a), mean(&b));
    let product = |xs: &[f64], mx: f64, ys: &[f64], my: f64| -> f64 {
        xs.iter().zip(ys).map(|(x, y)| (x - mx) * (y - my)).sum()
    };
    let scale = (product(&a, ma, &a, ma) * product(&b, mb, &b, mb)).sqrt();
    if scale > 0.0 { product(&a, ma, &b, mb) / scale } else { 0.0 }
}

fn ranks(values: &[f64]) -> Vec<f64> {
    let rank = |x: &f64| {
        let (below, equal) = values
            .iter()
            .fold((0, 0), |(below, equal), y| (below + usize::from(y < x), equal + usize::from(y == x)));
        below as f64 + (equal as f64 - 1.0) / 2.0
    };
    values.iter().map(rank).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use wattle_policy::Random;

    const TRUE: Coefficients =
        Coefficients { flop_j: 5e-12, dram_byte_j: 80e-12, on_chip_byte_j: 0.0, launch_j: 4e-6 };

    /// Windows of kernels of all kinds on a machine of these coefficients and 3 W, with relative noise.
    fn windows(noise: f64) -> Vec<Measured> {
        let mut random = Random(11);
        let kernels = [
            ("project", 1e9, 5e8),
            ("attend", 4e7, 1e7),
            ("norm", 1e6, 4e6),
            ("sample", 3e6, 6e5),
            ("add", 1e5, 1e6),
        ];
        let mut windows = Vec::new();
        for (kernel, flops, bytes) in kernels {
            for size in [0.2, 1.0, 5.0] {
                let intensity = random.between(0.5, 2.0);
                let cost = OpCost {
                    flops: (flops * size * intensity) as u64,
                    weight_bytes: (bytes * size) as u64,
                    on_chip_bytes: (flops * size * 8.0) as u64,
                    launches: 1 + random.below(4) as u64,
                    ..OpCost::default()
                };
                let seconds = (cost.flops as f64 / 1e11).max(cost.weight_bytes as f64 / 2e10)
                    * random.between(1.0, 1.6);
                let joules = TRUE.energy(&cost, seconds, 3.0).total_j() * (1.0 + noise * random.normal());
                windows.push(Measured::new(kernel, &cost, seconds, joules));
            }
        }
        windows
    }

    #[test]
    fn coefficients_come_back_from_exact_windows() {
        let windows = windows(0.0);
        let fit = Fit::of(&windows.iter().collect::<Vec<_>>()).unwrap();
        let pairs = [
            (fit.coefficients.flop_j, TRUE.flop_j),
            (fit.coefficients.dram_byte_j, TRUE.dram_byte_j),
            (fit.coefficients.launch_j, TRUE.launch_j),
            (fit.active_w, 3.0),
        ];
        for (found, expected) in pairs {
            assert!((found - expected).abs() < 1e-4 * expected, "{found} {expected}");
        }
        assert!(fit.coefficients.on_chip_byte_j.abs() < 1e-16);
    }

    #[test]
    fn the_proxy_foretells_kernels_that_it_has_not_seen_better_than_simpler_models() {
        let validation = validate(&windows(0.03)).unwrap();
        assert!(validation.proxy.mean_error < 0.3, "{validation:?}");
        assert!(validation.proxy.rank_correlation > 0.95, "{validation:?}");
        for simpler in [validation.flops_only, validation.bytes_only, validation.time_and_power] {
            assert!(simpler.mean_error > validation.proxy.mean_error, "{validation:?}");
        }
    }

    #[test]
    fn no_coefficient_is_below_zero() {
        // Least squares alone would give (2, −1).
        let a = [[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]];
        let x = nnls(&a, &[2.0, 1.0, -1.0]);
        assert_eq!(x[1], 0.0);
        assert!((x[0] - 1.5).abs() < 1e-9, "{x:?}");
        // An inner minimum is the plain one.
        let x = nnls(&a, &[1.0, 3.0, 2.0]);
        assert!((x[0] - 1.0).abs() < 1e-9 && (x[1] - 2.0).abs() < 1e-9, "{x:?}");
    }

    #[test]
    fn ranks_by_hand() {
        assert_eq!(rank_correlation(&[1.0, 2.0, 3.0], &[10.0, 20.0, 90.0]), 1.0);
        assert_eq!(rank_correlation(&[1.0, 2.0, 3.0], &[3.0, 2.0, 1.0]), -1.0);
        assert_eq!(ranks(&[5.0, 1.0, 5.0]), [1.5, 0.0, 1.5]);
        assert_eq!(rank_correlation(&[1.0, 1.0], &[1.0, 2.0]), 0.0);
    }

    #[test]
    fn windows_that_say_nothing_are_refused() {
        assert!(Fit::of(&[]).is_err());
        let mut windows = windows(0.0);
        windows[3].joules = 0.0;
        let message = Fit::of(&windows.iter().collect::<Vec<_>>()).unwrap_err().to_string();
        assert!(message.contains("attend"), "{message}");
        assert!(validate(&windows[..4]).unwrap_err().to_string().contains("at least 3"));
    }
}
