//! A gate (TLC-Calibrator, tier 1): a score from features of a hidden state, by a small MLP.

use crate::{Read, Write};

/// Features of a row: its length ‖x‖, mean, maximum, and its distance √(mean(((x − c) s)²)) from frozen constants.
pub const FEATURES: usize = 4;

/// What a gate computes with; `T` is a view (plain twin) or a slice (fast version).
#[derive(Clone, Copy)]
pub struct Gate<T> {
    /// Elements of a row.
    pub width: usize,
    /// Units of the hidden layer.
    pub hidden: usize,
    /// c \[width\], s \[width\], U \[hidden, [`FEATURES`]\], b \[hidden\], d \[hidden\], e.
    pub weights: T,
}

/// Elements of [`Gate::weights`].
pub const fn weights_len(width: usize, hidden: usize) -> usize {
    2 * width + (FEATURES + 2) * hidden + 1
}

/// y = sigmoid(d · relu(U f + b) + e) of the features f of each of `rows` rows; `x` \[rows, width\], `y` \[rows\].
pub fn plain(rows: usize, gate: &Gate<&dyn Read>, x: &dyn Read, y: &mut dyn Write) {
    let (width, n) = (gate.width, gate.width as f64);
    let weight = |at: usize| f64::from(gate.weights.get(at));
    for row in 0..rows {
        let x: Vec<f64> = (0..width).map(|i| f64::from(x.get(row * width + i))).collect();
        let distances = x.iter().enumerate().map(|(i, x)| ((x - weight(i)) * weight(width + i)).powi(2));
        let features = [
            x.iter().map(|x| x * x).sum::<f64>().sqrt(),
            x.iter().sum::<f64>() / n,
            x.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            (distances.sum::<f64>() / n).sqrt(),
        ];
        let up = 2 * width;
        let bias = up + FEATURES * gate.hidden;
        let down = bias + gate.hidden;
        let unit = |h: usize| {
            let products = features.iter().enumerate().map(|(i, f)| weight(up + h * FEATURES + i) * f);
            weight(down + h) * (products.sum::<f64>() + weight(bias + h)).max(0.0)
        };
        let logit = (0..gate.hidden).map(unit).sum::<f64>() + weight(down + gate.hidden);
        y.set(row, (1.0 / (1.0 + (-logit).exp())) as f32);
    }
}
