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
        let halves = [[group[0], group[1]], [group[2], group[3]]];
        let mut line = 0;
        while S::WIDE && line + 4 <= x.len() {
            let lines = [x[line], x[line + 1], x[line + 2], x[line + 3]];
            tile(simd, group, lines, 4 * stride, |w, l, sum| out(line + l, i + w, sum));
            line += 4;
        }
        while line + 2 <= x.len() {
            for (half, pair) in halves.into_iter().enumerate() {
                let lines = [x[line], x[line + 1]];
                tile(simd, pair, lines, 4 * stride, |w, l, sum| out(line + l, i + 2 * half + w, sum));
            }
            line += 2;
        }
        if line < x.len() {
            tile(simd, group, [x[line]], 4 * stride, |w, _, sum| out(line, i + w, sum));
        }
        i += 4;
    }
    while i < rows {
        for (line, x) in x.iter().enumerate() {
            tile(simd, [row(i)], [*x], stride, |_, _, sum| out(line, i, sum));
        }
        i += 1;
    }
}

/// The products of W rows and X lines at once, so that each is loaded once for all; asks for the elements `ahead` of
/// the rows' to be fetched meanwhile. The sizes in use leave the compiler registers enough for all sums.
///
/// Plain loops: vectors do not get inlined out of closures that go through library functions.
#[inline(always)]
fn tile<S: Simd, E: Element, const W: usize, const X: usize>(
    simd: S,
    rows: [&[E]; W],
    lines: [&[f32]; X],
    ahead: usize,
    mut out: impl FnMut(usize, usize, f32),
) {
    let mut sums = [[simd.zero(); W]; X];
    let (rows, row_rests) = split(rows);
    let (lines, line_rests) = split(lines);
    for chunk in 0..rows[0].len() {
        let mut weights = [simd.zero(); W];
        for (weight, row) in weights.iter_mut().zip(&rows) {
            *weight = E::load(simd, &row[chunk]);
            simd.prefetch(row[chunk].as_ptr().wrapping_add(ahead));
        }
        for (sums, line) in sums.iter_mut().zip(&lines) {
            let x = simd.load(&line[chunk]);
            for (sum, weight) in sums.iter_mut().zip(&weights) {
                *sum = simd.fma(*weight, x, *sum);
            }
        }
    }
    if !row_rests[0].is_empty() {
        for (sums, line) in sums.iter_mut().zip(&line_rests) {
            let x = simd.load(&padded(line));
            for (sum, row) in sums.iter_mut().zip(&row_rests) {
                *sum = simd.fma(E::load(simd, &padded(row)), x, *sum);
            }
        }
    }
    for (x, sums) in sums.into_iter().enumerate() {
        for (w, sum) in sums.into_iter().enumerate() {
            out(w, x, simd.sum(sum));
        }
    }
}

/// Equally long slices as whole vectors, as many of each, and what is left.
#[inline(always)]
fn split<E, const N: usize>(slices: [&[E]; N]) -> ([&[[E; LANES]]; N], [&[E]; N]) {
    let (mut chunks, mut rests): ([&[[E; LANES]]; N], [&[E]; N]) = ([&[]; N], [&[]; N]);
    let count = slices[0].len() / LANES;
    for (slice, (chunks, rest)) in slices.into_iter().zip(chunks.iter_mut().zip(&mut rests)) {
        let (all, left) = slice.as_chunks();
        // The same length for all, said so that loops over it need no checks.
        (*chunks, *rest) = (&all[..count], left);
    }
    (chunks, rests)
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
    for (lane, &value) in lanes.iter_mut().zip(rest) {
        *lane = larger(*lane, value);
    }
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] = larger(lanes[i], lanes[i + half]);
        }
        half /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::super::simd::{Work, run_all};
    use super::*;

    /// Products of all lines with all rows: \[lines, rows\].
    #[derive(Clone, Copy)]
    struct Products<'a> {
        matrix: &'a [f32],
        cols: usize,
        x: &'a [&'a [f32]],
    }

    impl Work for Products<'_> {
        type Output = Vec<f32>;

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> Vec<f32> {
            let rows = self.matrix.len() / self.cols;
            let mut sums = vec![f32::NAN; rows * self.x.len()];
            products(simd, self.matrix, self.cols, rows, self.cols, self.x, &mut |line, row, sum| {
                sums[line * rows + row] = sum;
            });
            sums
        }
    }

    #[test]
    fn tiling_changes_no_bit_on_any_instruction_set() {
        for (rows, cols, count) in [(1, 1, 1), (4, 16, 4), (7, 33, 9), (11, 130, 6), (5, 15, 3)] {
            let numbers = |len: usize| (0..len).map(|i| ((i * 37 + 11) % 101) as f32 / 50.0 - 1.0).collect();
            let (matrix, x): (Vec<f32>, Vec<f32>) = (numbers(rows * cols), numbers(count * cols));
            let x: Vec<&[f32]> = x.chunks(cols).collect();
            let whole = run_all(Products { matrix: &matrix, cols, x: &x });
            for (line, x) in x.iter().enumerate() {
                let alone = run_all(Products { matrix: &matrix, cols, x: &[x] });
                for (whole, alone) in whole.iter().zip(alone) {
                    assert_eq!(whole[line * rows..][..rows], alone);
                }
                for (row, matrix) in matrix.chunks(cols).enumerate() {
                    let terms = matrix.iter().zip(*x).map(|(&w, &x)| f64::from(w) * f64::from(x));
                    let (exact, sum) = (terms.sum::<f64>(), f64::from(whole[0][line * rows + row]));
                    assert!((sum - exact).abs() < 1e-5, "{rows} × {cols}: {sum}, expected {exact}");
                    // The sets with fused multiply-add agree bit for bit.
                    let fused: Vec<f32> = whole[1..].iter().map(|sums| sums[line * rows + row]).collect();
                    assert!(fused.windows(2).all(|pair| pair[0].to_bits() == pair[1].to_bits()));
                }
            }
        }
    }
}
