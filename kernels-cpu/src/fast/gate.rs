//! Gates: features of a row, and the MLP over them.

use super::simd::{Simd, Work, run};
use super::threads::lines;
use super::tile::{maximum, sum};
use crate::gate::{FEATURES, Gate};

/// `x` \[rows, gate.width\], `y` \[rows\].
pub fn gate(gate: &Gate<&[f32]>, x: &[f32], y: &mut [f32]) {
    lines(y, 1, 4 * x.len(), |first, y| {
        run(Rows { gate, x: &x[first * gate.width..][..y.len() * gate.width], y });
    });
}

struct Rows<'a> {
    gate: &'a Gate<&'a [f32]>,
    x: &'a [f32],
    y: &'a mut [f32],
}

impl Work for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let mut distances = vec![0.0; self.gate.width];
        for (x, y) in self.x.chunks(self.gate.width).zip(self.y) {
            *y = score(self.gate, features(simd, self.gate, x, &mut distances));
        }
    }
}

#[inline(always)]
fn features<S: Simd>(simd: S, gate: &Gate<&[f32]>, x: &[f32], distances: &mut [f32]) -> [f32; FEATURES] {
    let (center, scale) = gate.weights[..2 * gate.width].split_at(gate.width);
    for (d, (x, (c, s))) in distances.iter_mut().zip(x.iter().zip(center.iter().zip(scale))) {
        *d = (x - c) * s;
    }
    let n = gate.width as f32;
    let squares = |values: &[f32]| sum(simd, values, |x| x * x);
    [squares(x).sqrt(), sum(simd, x, |x| x) / n, maximum(x), (squares(distances) / n).sqrt()]
}

/// Few units: nothing to speed up.
fn score(gate: &Gate<&[f32]>, features: [f32; FEATURES]) -> f32 {
    let (up, rest) = gate.weights[2 * gate.width..].split_at(FEATURES * gate.hidden);
    let (bias, rest) = rest.split_at(gate.hidden);
    let (down, last) = rest.split_at(gate.hidden);
    let units = up.as_chunks::<FEATURES>().0.iter().zip(bias.iter().zip(down));
    let logit = units.fold(last[0], |logit, (up, (bias, down))| {
        let sum = up.iter().zip(features).fold(*bias, |sum, (u, f)| sum + u * f);
        logit + down * sum.max(0.0)
    });
    1.0 / (1.0 + (-logit).exp())
}
