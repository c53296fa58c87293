//! Attention.

use wattle_shaders::Row;

use super::math::exp;
use super::simd::{LANES, Simd, Work, run};
use super::threads::{each, parts};
use super::tile::{maximum, products, sum};
use crate::attend::Attend;

/// `q` and `y` \[rows, heads × head_dim\]; K and V of one layer's cache, \[sequences, context, kv_heads × head_dim\].
pub fn attend(rows: &[Row], op: &Attend, q: &[f32], k: &[f32], v: &[f32], y: &mut [f32]) {
    let width = op.heads / op.kv_heads * op.head_dim;
    let work: usize = rows.iter().map(|row| op.span(row).len() * 2 * op.heads * op.head_dim).sum();
    // The query heads of one key head of one row.
    let groups: Vec<_> =
        y.chunks_mut(width).enumerate().map(|(index, y)| (index, &q[index * width..][..width], y)).collect();
    let per = groups.len().div_ceil(parts(work)).max(1);
    let mut groups = groups.into_iter();
    let tasks: Vec<Vec<_>> = std::iter::from_fn(|| {
        let task: Vec<_> = groups.by_ref().take(per).collect();
        (!task.is_empty()).then_some(task)
    })
    .collect();
    each(tasks, |groups| {
        for (index, q, y) in groups {
            let (row, head) = (&rows[index / op.kv_heads], index % op.kv_heads * (op.heads / op.kv_heads));
            run(Group { op, row, head, q, k, v, y });
        }
    });
}

/// The query heads from `head` on that share a key head.
struct Group<'a> {
    op: &'a Attend,
    row: &'a Row,
    head: usize,
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    y: &'a mut [f32],
}

impl Work for Group<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let op = self.op;
        let span = op.span(self.row);
        let (positions, stride) = (span.len(), op.kv_heads * op.head_dim);
        let start = op.at(self.row, span.start, self.head);
        let heads: Vec<&[f32]> = self.q.chunks(op.head_dim).collect();
        let mut scores = vec![0.0; heads.len() * positions];
        products(
            simd,
            &self.k[start..],
            stride,
            positions,
            op.head_dim,
            &heads,
            &mut |head, position, sum| {
                scores[head * positions + position] = sum * op.scale;
            },
        );
        let mut totals = vec![0.0; heads.len()];
        for (scores, total) in scores.chunks_mut(positions).zip(&mut totals) {
            let max = maximum(scores);
            for score in scores.iter_mut() {
                *score = exp(simd, *score - max);
            }
            *total = sum(simd, scores, |weight| weight);
        }
        let scores: Vec<&[f32]> = scores.chunks(positions).collect();
        weighted_sums(simd, &scores, &self.v[start..], stride, op.head_dim, self.y);
        for (y, total) in self.y.chunks_mut(op.head_dim).zip(totals) {
            y.iter_mut().for_each(|y| *y /= total);
        }
    }
}

/// For every head (a row of `width` elements of y), the rows of v (`stride` apart), each times its weight, added in
/// order.
#[inline(always)]
fn weighted_sums<S: Simd>(
    simd: S,
    weights: &[&[f32]],
    v: &[f32],
    stride: usize,
    width: usize,
    y: &mut [f32],
) {
    let mut head = 0;
    while head < weights.len() {
        let (weights, y) = (&weights[head..], &mut y[head * width..]);
        // As many heads at once as there are registers for, so that v is loaded once for them.
        head += match weights {
            [a, b, c, d, ..] if S::WIDE => heads(simd, [a, b, c, d], v, stride, width, y),
            [a, b, ..] if S::WIDE => heads(simd, [a, b], v, stride, width, y),
            [a, ..] => heads(simd, [a], v, stride, width, y),
            [] => 1,
        };
    }
}

/// H heads; returns H.
#[inline(always)]
fn heads<S: Simd, const H: usize>(
    simd: S,
    weights: [&[f32]; H],
    v: &[f32],
    stride: usize,
    width: usize,
    y: &mut [f32],
) -> usize {
    let mut done = 0;
    while done < width {
        let v = &v[done..];
        done += match (width - done) / LANES {
            0 => rest(simd, weights, v, stride, [width, done], y),
            1 => vectors::<S, H, 1>(simd, weights, v, stride, [width, done], y),
            2 | 3 => vectors::<S, H, 2>(simd, weights, v, stride, [width, done], y),
            _ => vectors::<S, H, 4>(simd, weights, v, stride, [width, done], y),
        };
    }
    H
}

/// N vectors of each head, from element `done` on; returns how many elements that is.
#[inline(always)]
fn vectors<S: Simd, const H: usize, const N: usize>(
    simd: S,
    weights: [&[f32]; H],
    v: &[f32],
    stride: usize,
    [width, done]: [usize; 2],
    y: &mut [f32],
) -> usize {
    let mut sums = [[simd.zero(); N]; H];
    for position in 0..weights[0].len() {
        let (chunks, _) = v[position * stride..][..N * LANES].as_chunks::<LANES>();
        for (n, chunk) in chunks.iter().enumerate() {
            let chunk = simd.load(chunk);
            for h in 0..H {
                sums[h][n] = simd.fma(simd.splat(weights[h][position]), chunk, sums[h][n]);
            }
        }
    }
    for (h, sums) in sums.into_iter().enumerate() {
        for (sum, y) in sums.into_iter().zip(y[h * width + done..].as_chunks_mut().0) {
            simd.store(sum, y);
        }
    }
    N * LANES
}

/// Fewer elements than a vector has: the last of each head.
#[inline(always)]
fn rest<S: Simd, const H: usize>(
    simd: S,
    weights: [&[f32]; H],
    v: &[f32],
    stride: usize,
    [width, done]: [usize; 2],
    y: &mut [f32],
) -> usize {
    for (h, weights) in weights.into_iter().enumerate() {
        let y = &mut y[h * width + done..(h + 1) * width];
        y.fill(0.0);
        for (position, weight) in weights.iter().enumerate() {
            for (y, v) in y.iter_mut().zip(&v[position * stride..]) {
                *y = simd.mul_add(*weight, *v, *y);
            }
        }
    }
    width - done
}
