//! Attention. Neighbouring rows of a sequence and the heads that share a key head read keys and values together.
//!
//! A score is summed over the head's elements in their order, each position in its own lane; a value over the
//! positions in their order. So neither depends on which queries are computed together.

use std::ops::Range;

use wattle_shaders::Row;

use super::math::exp;
use super::simd::{LANES, Simd, Work, run};
use super::threads::{each, parts};
use super::tile::{maximum, sum};
use crate::attend::Attend;
use crate::cache::{Layout, POSITIONS};

/// Queries that read the same keys one after the other, while these are in the nearest cache.
const TOGETHER: usize = 16;

/// `q` and `y` \[rows, heads × head_dim\]; K and V of one layer's cache.
pub fn attend(rows: &[Row], op: &Attend, layout: Layout, q: &[f32], [k, v]: [&[f32]; 2], y: &mut [f32]) {
    // Heads that share a key head lie together.
    let width = op.heads / layout.kv_heads * layout.head_dim;
    let work: usize = rows.iter().map(|row| op.span(row).len() * 2 * op.heads * layout.head_dim).sum();
    let mut groups = Vec::new();
    // For each row, the group of its first key head.
    let mut first = Vec::with_capacity(rows.len());
    for run in rows.chunk_by(|a, b| a.sequence == b.sequence) {
        for rows in run.chunks((TOGETHER * layout.head_dim / width).max(1)) {
            first.extend(rows.iter().map(|_| groups.len()));
            for head in 0..layout.kv_heads {
                let at = layout.head(rows[0].sequence, head);
                let (k, v) = (&k[at..][..layout.head_len()], &v[at..][..layout.head_len()]);
                groups.push(Group { op, head_dim: layout.head_dim, k, v, queries: Vec::new() });
            }
        }
    }
    for (index, (q, y)) in q.chunks(width).zip(y.chunks_mut(width)).enumerate() {
        let (line, head) = (index / layout.kv_heads, index % layout.kv_heads);
        let span = op.span(&rows[line]);
        let heads = q.chunks(layout.head_dim).zip(y.chunks_mut(layout.head_dim));
        let queries = heads.map(|(q, y)| Query { span: span.clone(), q, y });
        groups[first[line] + head].queries.extend(queries);
    }
    let per = groups.len().div_ceil(parts(work)).max(1);
    let tasks: Vec<&mut [Group]> = groups.chunks_mut(per).collect();
    each(tasks, |groups| groups.iter_mut().for_each(run));
}

/// Queries of one key head of one sequence.
struct Group<'a> {
    op: &'a Attend,
    head_dim: usize,
    /// The head's keys and values.
    k: &'a [f32],
    v: &'a [f32],
    queries: Vec<Query<'a>>,
}

struct Query<'a> {
    /// Positions that it sees.
    span: Range<usize>,
    q: &'a [f32],
    y: &'a mut [f32],
}

impl Work for &mut Group<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Group { op, head_dim, k, v, ref mut queries } = *self;
        let mut rest = &mut queries[..];
        while !rest.is_empty() {
            let most = if S::WIDE { rest.len() } else { rest.len().min(4) };
            let (tile, after) = rest.split_at_mut(match most {
                8.. => 8,
                4.. => 4,
                2.. => 2,
                _ => 1,
            });
            let keys = Keys { values: k, head_dim, scale: op.scale };
            let scores = match tile.len() {
                8 => keys.scores::<S, 8>(simd, tile),
                4 => keys.scores::<S, 4>(simd, tile),
                2 => keys.scores::<S, 2>(simd, tile),
                _ => keys.scores::<S, 1>(simd, tile),
            };
            values(simd, scores, v, head_dim, tile);
            rest = after;
        }
    }
}

/// The scores of a tile of queries: a row for each.
struct Scores {
    values: Vec<f32>,
    /// Positions of a row.
    positions: usize,
    /// The first of them: a multiple of [`POSITIONS`].
    start: usize,
}

impl Scores {
    /// Those of one query.
    fn of(&mut self, query: usize, span: &Range<usize>) -> &mut [f32] {
        let row = query * self.positions;
        &mut self.values[row + span.start - self.start..row + span.end - self.start]
    }
}

/// The keys of a head: \[panels, head_dim, 16\].
struct Keys<'a> {
    values: &'a [f32],
    head_dim: usize,
    scale: f32,
}

impl Keys<'_> {
    /// scale · q Kᵀ for N queries, at the positions that any of them sees (and up to whole panels).
    #[inline(always)]
    fn scores<S: Simd, const N: usize>(&self, simd: S, queries: &[Query]) -> Scores {
        let first = queries.iter().map(|query| query.span.start).min().unwrap_or(0) / POSITIONS;
        let end = queries.iter().map(|query| query.span.end).max().unwrap_or(0).div_ceil(POSITIONS);
        let positions = (end - first) * POSITIONS;
        let mut values = vec![0.0; N * positions];
        let mut q = vec![[0.0; N]; self.head_dim];
        for (n, query) in queries.iter().enumerate() {
            q.iter_mut().zip(query.q).for_each(|(to, from)| to[n] = *from);
        }
        let mut panel = first;
        while panel < end {
            let to = &mut values[(panel - first) * POSITIONS..];
            // As many panels at once as there are registers for, and enough that additions need not wait.
            panel += match end - panel {
                4.. if S::WIDE && N <= 4 => self.panels::<S, N, 4>(simd, &q, panel, to, positions),
                2.. if S::WIDE || N <= 2 => self.panels::<S, N, 2>(simd, &q, panel, to, positions),
                _ => self.panels::<S, N, 1>(simd, &q, panel, to, positions),
            };
        }
        Scores { values, positions, start: first * POSITIONS }
    }

    /// Those of P panels; returns P.
    #[inline(always)]
    fn panels<S: Simd, const N: usize, const P: usize>(
        &self,
        simd: S,
        q: &[[f32; N]],
        panel: usize,
        to: &mut [f32],
        stride: usize,
    ) -> usize {
        let size = q.len() * POSITIONS;
        let mut panels: [&[[f32; POSITIONS]]; P] = [&[]; P];
        for (p, values) in panels.iter_mut().enumerate() {
            *values = &self.values[(panel + p) * size..][..size].as_chunks().0[..q.len()];
        }
        let mut sums = [[simd.zero(); P]; N];
        for (i, q) in q.iter().enumerate() {
            let mut keys = [simd.zero(); P];
            for p in 0..P {
                keys[p] = simd.load(&panels[p][i]);
            }
            for n in 0..N {
                let q = simd.splat(q[n]);
                for p in 0..P {
                    sums[n][p] = simd.fma(q, keys[p], sums[n][p]);
                }
            }
        }
        for (n, sums) in sums.into_iter().enumerate() {
            for (sum, to) in sums.into_iter().zip(to[n * stride..].as_chunks_mut().0) {
                simd.store(simd.mul(sum, simd.splat(self.scale)), to);
            }
        }
        P
    }
}

/// y = softmax(scores) V for each query of a tile.
#[inline(always)]
fn values<S: Simd>(simd: S, mut scores: Scores, v: &[f32], head_dim: usize, queries: &mut [Query]) {
    let mut totals = [0.0; 8];
    for (n, query) in queries.iter_mut().enumerate() {
        let scores = scores.of(n, &query.span);
        let max = maximum(scores);
        for score in scores.iter_mut() {
            *score = exp(simd, *score - max);
        }
        totals[n] = sum(simd, scores, |weight| weight);
        query.y.fill(0.0);
    }
    // As many queries at once as there are registers for.
    let most = if S::WIDE { 4 } else { 2 };
    for (index, queries) in queries.chunks_mut(most).enumerate() {
        let sums = Sums { scores: &scores, first: index * most, v, head_dim };
        match queries.len() {
            4 => sums.add::<S, 4>(simd, queries),
            2 => sums.add::<S, 2>(simd, queries),
            _ => sums.add::<S, 1>(simd, queries),
        }
    }
    for (query, total) in queries.iter_mut().zip(totals) {
        query.y.iter_mut().for_each(|y| *y /= total);
    }
}

/// Sums of values, each times its weight.
struct Sums<'a> {
    scores: &'a Scores,
    /// Index of the first query in the scores.
    first: usize,
    /// \[positions, head_dim\].
    v: &'a [f32],
    head_dim: usize,
}

impl Sums<'_> {
    /// Adds what N queries see: together where all do, so that values are loaded once for them. What a query does not
    /// see must not even be added times zero: it may be NaN.
    #[inline(always)]
    fn add<S: Simd, const N: usize>(&self, simd: S, queries: &mut [Query]) {
        let start = queries.iter().map(|query| query.span.start).max().unwrap_or(0);
        let end = queries.iter().map(|query| query.span.end).min().unwrap_or(0).max(start);
        for n in 0..N {
            let Range { start: own, end: own_end } = queries[n].span;
            self.range::<S, 1>(simd, n, &mut queries[n..=n], own..start.min(own_end));
        }
        self.range::<S, N>(simd, 0, queries, start..end);
        for n in 0..N {
            let Range { start: own, end: own_end } = queries[n].span;
            self.range::<S, 1>(simd, n, &mut queries[n..=n], end.max(own)..own_end);
        }
    }

    /// Adds a range of positions for N queries, the n-th and those after it.
    #[inline(always)]
    fn range<S: Simd, const N: usize>(&self, simd: S, n: usize, queries: &mut [Query], range: Range<usize>) {
        if range.is_empty() {
            return;
        }
        let mut weights: [&[f32]; N] = [&[]; N];
        for (index, weights) in weights.iter_mut().enumerate() {
            let row = (self.first + n + index) * self.scores.positions;
            *weights = &self.scores.values[row + range.start - self.scores.start..][..range.len()];
        }
        let v = &self.v[range.start * self.head_dim..range.end * self.head_dim];
        let mut done = 0;
        while done < self.head_dim {
            done += match (self.head_dim - done) / LANES {
                0 => self.rest(simd, weights, &v[done..], queries, done),
                1 => self.vectors::<S, N, 1>(simd, weights, &v[done..], queries, done),
                2 | 3 => self.vectors::<S, N, 2>(simd, weights, &v[done..], queries, done),
                _ if S::WIDE => self.vectors::<S, N, 4>(simd, weights, &v[done..], queries, done),
                _ => self.vectors::<S, N, 2>(simd, weights, &v[done..], queries, done),
            };
        }
    }

    /// V vectors of each query, from element `done` on, where `v` begins; returns how many elements that is.
    #[inline(always)]
    fn vectors<S: Simd, const N: usize, const V: usize>(
        &self,
        simd: S,
        weights: [&[f32]; N],
        v: &[f32],
        queries: &mut [Query],
        done: usize,
    ) -> usize {
        let mut sums = [[simd.zero(); V]; N];
        for (sums, query) in sums.iter_mut().zip(&*queries) {
            for (sum, y) in sums.iter_mut().zip(query.y[done..].as_chunks().0) {
                *sum = simd.load(y);
            }
        }
        for position in 0..weights[0].len() {
            let chunks = &v[position * self.head_dim..][..V * LANES].as_chunks::<LANES>().0;
            let mut values = [simd.zero(); V];
            for i in 0..V {
                values[i] = simd.load(&chunks[i]);
            }
            for n in 0..N {
                let weight = simd.splat(weights[n][position]);
                for i in 0..V {
                    sums[n][i] = simd.fma(weight, values[i], sums[n][i]);
                }
            }
        }
        for (sums, query) in sums.into_iter().zip(queries) {
            for (sum, y) in sums.into_iter().zip(query.y[done..].as_chunks_mut().0) {
                simd.store(sum, y);
            }
        }
        V * LANES
    }

    /// Fewer elements than a vector has: the last of a head.
    #[inline(always)]
    fn rest<S: Simd, const N: usize>(
        &self,
        simd: S,
        weights: [&[f32]; N],
        v: &[f32],
        queries: &mut [Query],
        done: usize,
    ) -> usize {
        for (weights, query) in weights.into_iter().zip(queries) {
            for (weight, v) in weights.iter().zip(v.chunks(self.head_dim)) {
                for (y, v) in query.y[done..].iter_mut().zip(v) {
                    *y = simd.mul_add(*weight, *v, *y);
                }
            }
        }
        self.head_dim - done
    }
}
