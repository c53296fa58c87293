//! Layer norm (Ba et al. 2016): (x − mean) / √(variance + ε) · weight + bias; and RMS norm (Zhang & Sennrich 2019):
//! x / √(mean(x²) + ε) · weight; of each of the equal parts of a row.

use crate::{Carry, Read, Write};

/// What a norm does with each part; `T` is a view (plain twins) or a slice (fast versions).
#[derive(Clone, Copy)]
pub struct Norm<T> {
    /// Elements of a part.
    pub width: usize,
    /// Subtract the mean (layer norm).
    pub center: bool,
    /// Added to the variance.
    pub eps: f32,
    /// \[width\]; ones if absent.
    pub weight: Option<T>,
    /// \[width\]; zeros if absent.
    pub bias: Option<T>,
}

impl Norm<&dyn Read> {
    /// The norm of one part.
    pub fn apply(&self, part: &[f64]) -> Vec<f64> {
        let width = self.width as f64;
        let mean = if self.center { part.iter().sum::<f64>() / width } else { 0.0 };
        let variance = part.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / width;
        let scale = 1.0 / (variance + f64::from(self.eps)).sqrt();
        let weight = |i| self.weight.map_or(1.0, |w| f64::from(w.get(i)));
        let bias = |i| self.bias.map_or(0.0, |b| f64::from(b.get(i)));
        part.iter().enumerate().map(|(i, x)| (x - mean) * scale * weight(i) + bias(i)).collect()
    }
}

/// `x` and `y` \[parts, width\]; what is carried has y as its input, and then a part is a row.
pub fn plain(
    parts: usize,
    norm: &Norm<&dyn Read>,
    x: &dyn Read,
    y: &mut dyn Write,
    mut carry: Option<Carry>,
) {
    for line in 0..parts {
        let start = line * norm.width;
        let part: Vec<f64> = (0..norm.width).map(|i| f64::from(x.get(start + i))).collect();
        let values = norm.apply(&part);
        values.iter().enumerate().for_each(|(i, &value)| y.set(start + i, value as f32));
        carry.iter_mut().for_each(|carry| carry.row(line, &values));
    }
}
