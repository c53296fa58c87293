//! scale · q Kᵀ.

use std::ops::Range;

use wattle_shaders::PAGE;

use super::super::simd::{LANES, Simd};
use super::{Group, Query, Scores, Segment, panels, tiles};
use crate::cache::POSITIONS;

const _: () = assert!(LANES == POSITIONS, "a panel is a vector for each element");

/// Some queries, element by element.
struct Tile {
    queries: Range<usize>,
    /// \[head_dim, queries\].
    q: Vec<f32>,
}

impl Group<'_> {
    /// The scores of a segment's pages: page by page, so that those who share one find it near. `wide` is room for one.
    #[inline(always)]
    pub(super) fn keys<S: Simd>(
        &mut self,
        simd: S,
        segment: &Segment,
        scores: &mut Scores,
        wide: &mut Vec<f32>,
    ) {
        let most = if S::WIDE { 8 } else { 4 };
        let tiles =
            |part: &Range<usize>| tiles(part.clone(), most).into_iter().map(|run| self.tile(run)).collect();
        let parts: Vec<Vec<Tile>> = segment.parts.iter().map(tiles).collect();
        for page in segment.pages.clone() {
            for tiles in &parts {
                let Some(first) = tiles.first() else { continue };
                let page_of = self.queries[first.queries.start].table[page];
                let values = self.source.read(simd, 0, page_of, wide);
                self.read += 1;
                let keys = Keys { values, scale: self.op.scale };
                for tile in tiles {
                    let queries = &self.queries[tile.queries.clone()];
                    match tile.queries.len() {
                        8 => keys.page::<S, 8>(simd, tile, queries, page, scores),
                        4 => keys.page::<S, 4>(simd, tile, queries, page, scores),
                        2 => keys.page::<S, 2>(simd, tile, queries, page, scores),
                        _ => keys.page::<S, 1>(simd, tile, queries, page, scores),
                    }
                }
            }
        }
    }

    fn tile(&self, queries: Range<usize>) -> Tile {
        let mut q = vec![0.0; self.source.layout.head_dim * queries.len()];
        for (n, query) in self.queries[queries.clone()].iter().enumerate() {
            let to = q[n..].iter_mut().step_by(queries.len());
            to.zip(query.q).for_each(|(to, q)| *to = *q);
        }
        Tile { queries, q }
    }
}

/// The keys of a page: \[panels, head_dim, 16\].
struct Keys<'a> {
    values: &'a [f32],
    scale: f32,
}

impl Keys<'_> {
    /// The scores of a tile's N queries, up to whole panels.
    #[inline(always)]
    fn page<S: Simd, const N: usize>(
        &self,
        simd: S,
        tile: &Tile,
        queries: &[Query],
        page: usize,
        scores: &mut Scores,
    ) {
        let (q, panels) = (tile.q.as_chunks::<N>().0, panels(queries, page));
        let mut panel = panels.start;
        while panel < panels.end {
            let at = scores.at(tile.queries.start, page * PAGE + panel * POSITIONS);
            let (to, stride) = (&mut scores.values[at..], scores.positions);
            // As many panels at once as there are registers for, and enough that additions need not wait.
            panel += match panels.end - panel {
                4.. if S::WIDE && N <= 4 => self.panels::<S, N, 4>(simd, q, panel, to, stride),
                2.. if S::WIDE || N <= 2 => self.panels::<S, N, 2>(simd, q, panel, to, stride),
                _ => self.panels::<S, N, 1>(simd, q, panel, to, stride),
            };
        }
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
