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
        for (scores, y) in scores.chunks_mut(positions).zip(self.y.chunks_mut(op.head_dim)) {
            let max = maximum(scores);
            for score in scores.iter_mut() {
                *score = exp(simd, *score - max);
            }
            let total = sum(simd, scores, |weight| weight);
            weighted_sum(simd, scores, &self.v[start..], stride, y);
            y.iter_mut().for_each(|y| *y /= total);
        }
    }
}

/// y = the rows of v (`stride` apart), each times its weight, added in order.
#[inline(always)]
fn weighted_sum<S: Simd>(simd: S, weights: &[f32], v: &[f32], stride: usize, y: &mut [f32]) {
    let mut done = 0;
    while done < y.len() {
        let (v, y) = (&v[done..], &mut y[done..]);
        done += match y.len() / LANES {
            0 => rest(simd, weights, v, stride, y),
            1 => vectors::<S, 1>(simd, weights, v, stride, y),
            2 | 3 => vectors::<S, 2>(simd, weights, v, stride, y),
            _ => vectors::<S, 4>(simd, weights, v, stride, y),
        };
    }
}

/// The first N vectors of y; returns how many elements that is.
#[inline(always)]
fn vectors<S: Simd, const N: usize>(
    simd: S,
    weights: &[f32],
    v: &[f32],
    stride: usize,
    y: &mut [f32],
) -> usize {
    let mut sums = [simd.zero(); N];
    for (position, &weight) in weights.iter().enumerate() {
        let weight = simd.splat(weight);
        let (chunks, _) = v[position * stride..][..N * LANES].as_chunks::<LANES>();
        for (sum, chunk) in sums.iter_mut().zip(chunks) {
            *sum = simd.fma(weight, simd.load(chunk), *sum);
        }
    }
    for (sum, y) in sums.into_iter().zip(y.as_chunks_mut().0) {
        simd.store(sum, y);
    }
    N * LANES
}

/// Fewer elements than a vector has.
#[inline(always)]
fn rest<S: Simd>(simd: S, weights: &[f32], v: &[f32], stride: usize, y: &mut [f32]) -> usize {
    y.fill(0.0);
    for (position, weight) in weights.iter().enumerate() {
        for (y, v) in y.iter_mut().zip(&v[position * stride..]) {
            *y = simd.mul_add(*weight, *v, *y);
        }
    }
    y.len()
}
