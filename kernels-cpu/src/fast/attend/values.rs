//! Sums of values, each times its weight.

use std::ops::Range;

use wattle_shaders::PAGE;

use super::super::simd::{LANES, Simd};
use super::{Group, Query, Scores, Segment, tiles};

impl Group<'_> {
    /// Adds the values of a segment's pages: page by page, as keys are read.
    #[inline(always)]
    pub(super) fn values<S: Simd>(
        &mut self,
        simd: S,
        segment: &Segment,
        scores: &Scores,
        wide: &mut Vec<f32>,
    ) {
        // As many queries at once as there are registers for.
        let most = if S::WIDE { 4 } else { 2 };
        let parts: Vec<_> = segment.parts.iter().map(|part| tiles(part.clone(), most)).collect();
        let source = self.source;
        for page in segment.pages.clone() {
            for tiles in &parts {
                let Some(first) = tiles.first() else { continue };
                let v = source.read(simd, 1, self.queries[first.start].table[page], wide);
                for tile in tiles {
                    let (first, head_dim) = (tile.start, source.layout.head_dim);
                    let sums = Sums { scores, first, v, head_dim, start: page * PAGE };
                    let queries = &mut self.queries[tile.clone()];
                    match tile.len() {
                        4 => sums.add::<S, 4>(simd, queries),
                        2 => sums.add::<S, 2>(simd, queries),
                        _ => sums.add::<S, 1>(simd, queries),
                    }
                }
            }
        }
    }
}

/// The positions of a span in the page that begins at `start`.
fn inside(span: &Range<usize>, start: usize) -> Range<usize> {
    let end = span.end.clamp(start, start + PAGE);
    span.start.clamp(start, end)..end
}

/// The values of a page.
struct Sums<'a> {
    scores: &'a Scores,
    /// Index of the first query in the scores.
    first: usize,
    /// \[64, head_dim\].
    v: &'a [f32],
    head_dim: usize,
    /// The page's first position.
    start: usize,
}

impl Sums<'_> {
    /// Adds what N queries see: together where all do, so that values are loaded once for them. What a query does not
    /// see must not even be added times zero: it may be NaN.
    #[inline(always)]
    fn add<S: Simd, const N: usize>(&self, simd: S, queries: &mut [Query]) {
        let mut all = self.start..self.start + PAGE;
        for query in &*queries {
            let seen = inside(&query.span, self.start);
            all = all.start.max(seen.start)..all.end.min(seen.end);
        }
        all.end = all.end.max(all.start);
        for n in 0..N {
            let seen = inside(&queries[n].span, self.start);
            self.range::<S, 1>(simd, n, &mut queries[n..=n], seen.start..all.start.min(seen.end));
        }
        self.range::<S, N>(simd, 0, queries, all.clone());
        for n in 0..N {
            let seen = inside(&queries[n].span, self.start);
            self.range::<S, 1>(simd, n, &mut queries[n..=n], all.end.max(seen.start)..seen.end);
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
            let at = self.scores.at(self.first + n + index, range.start);
            *weights = &self.scores.values[at..][..range.len()];
        }
        let v = &self.v[(range.start - self.start) * self.head_dim..(range.end - self.start) * self.head_dim];
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
