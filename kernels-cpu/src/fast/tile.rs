//! Dot products of rows of a matrix with several vectors.

use super::simd::{Element, LANES, Simd};

/// Calls `out(line, row, sum)` with the dot product of every row of a matrix and every line of x.
///
/// Row `i` is `matrix[i * stride..][..cols]`. Each product is summed alone, over 16 lanes: how rows and lines are
/// tiled does not change it.
#[inline(always)]
pub(super) fn products<S: Simd, E: Element>(
    simd: S,
    matrix: &[E],
    stride: usize,
    rows: usize,
    cols: usize,
    x: &[&[f32]],
    out: &mut impl FnMut(usize, usize, f32),
) {
    let row = |i: usize| &matrix[i * stride..][..cols];
    let mut i = 0;
    while i + 4 <= rows {
        let group = [row(i), row(i + 1), row(i + 2), row(i + 3)];
        let mut line = 0;
        if S::WIDE {
            while line + 4 <= x.len() {
                tile(simd, group, [x[line], x[line + 1], x[line + 2], x[line + 3]], |w, l, sum| {
                    out(line + l, i + w, sum);
                });
                line += 4;
            }
        }
        while line + 2 <= x.len() {
            let lines = [x[line], x[line + 1]];
            if S::WIDE {
                tile(simd, group, lines, |w, l, sum| out(line + l, i + w, sum));
            } else {
                tile(simd, [group[0], group[1]], lines, |w, l, sum| out(line + l, i + w, sum));
                tile(simd, [group[2], group[3]], lines, |w, l, sum| out(line + l, i + 2 + w, sum));
            }
            line += 2;
        }
        if line < x.len() {
            tile(simd, group, [x[line]], |w, _, sum| out(line, i + w, sum));
        }
        i += 4;
    }
    while i < rows {
        for (line, x) in x.iter().enumerate() {
            tile(simd, [row(i)], [*x], |_, _, sum| out(line, i, sum));
        }
        i += 1;
    }
}

/// The products of W rows and X lines at once, so that each is loaded once for all.
#[inline(always)]
fn tile<S: Simd, E: Element, const W: usize, const X: usize>(
    simd: S,
    rows: [&[E]; W],
    lines: [&[f32]; X],
    mut out: impl FnMut(usize, usize, f32),
) {
    let mut sums = [[simd.zero(); W]; X];
    let rows = rows.map(|row| row.as_chunks::<LANES>());
    let lines = lines.map(|line| line.as_chunks::<LANES>());
    let chunks = rows.iter().map(|row| row.0.len()).chain(lines.iter().map(|line| line.0.len())).min();
    for chunk in 0..chunks.unwrap_or(0) {
        let weights = rows.map(|row| E::load(simd, &row.0[chunk]));
        for (sums, line) in sums.iter_mut().zip(&lines) {
            let x = simd.load(&line.0[chunk]);
            for (sum, &weight) in sums.iter_mut().zip(&weights) {
                *sum = simd.fma(weight, x, *sum);
            }
        }
    }
    if lines.iter().any(|line| !line.1.is_empty()) {
        let weights = rows.map(|row| E::load(simd, &padded(row.1)));
        for (sums, line) in sums.iter_mut().zip(&lines) {
            let x = simd.load(&padded(line.1));
            for (sum, &weight) in sums.iter_mut().zip(&weights) {
                *sum = simd.fma(weight, x, *sum);
            }
        }
    }
    for (x, sums) in sums.into_iter().enumerate() {
        for (w, sum) in sums.into_iter().enumerate() {
            out(w, x, simd.sum(sum));
        }
    }
}

/// The last elements of a row, with zeros behind them.
#[inline(always)]
fn padded<E: Element>(rest: &[E]) -> [E; LANES] {
    let mut lanes = [E::default(); LANES];
    lanes[..rest.len()].copy_from_slice(rest);
    lanes
}

/// The sum of `f(element)`, over 16 lanes.
#[inline(always)]
pub(super) fn sum<S: Simd>(simd: S, values: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut sums = [0.0; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for (sum, &value) in sums.iter_mut().zip(chunk) {
            *sum += f(value);
        }
    }
    for (sum, &value) in sums.iter_mut().zip(rest) {
        *sum += f(value);
    }
    simd.sum(simd.load(&sums))
}

/// The largest of some numbers.
#[inline(always)]
pub(super) fn maximum(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, value);
        }
    }
    lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, larger)
}
