//! scale · q Kᵀ.

use std::ops::Range;

use wattle_shaders::PAGE;

use super::super::simd::{Element, LANES, Simd};
use super::{Group, Scores, Segment, panels, tiles};
use crate::cache::POSITIONS;

const _: () = assert!(LANES == POSITIONS, "a panel is a vector for each element");

/// Some queries, element by element.
struct Tile {
    queries: Range<usize>,
    /// \[head_dim, queries\].
    q: Vec<f32>,
}

impl<E: Element> Group<'_, E> {
    /// The scores of a segment's pages: page by page, so that those who share one find it near.
    #[inline(always)]
    pub(super) fn keys<S: Simd>(&self, simd: S, segment: &Segment, scores: &mut Scores) {
        let most = if S::WIDE { 8 } else { 4 };
        let tiles: Vec<Tile> =
            segment.parts.iter().flat_map(|part| tiles(part.clone(), most)).map(|run| self.tile(run)).collect();
        for page in segment.pages.clone() {
            for tile in &tiles {
                match tile.queries.len() {
                    8 => self.page::<S, 8>(simd, tile, page, scores),
                    4 => self.page::<S, 4>(simd, tile, page, scores),
                    2 => self.page::<S, 2>(simd, tile, page, scores),
                    _ => self.page::<S, 1>(simd, tile, page, scores),
                }
            }
        }
    }

    fn tile(&self, queries: Range<usize>) -> Tile {
        let head_dim = self.stored.layout.head_dim;
        let all = || self.queries[queries.clone()].iter();
        let q = (0..head_dim).flat_map(|i| all().map(move |query| query.q[i])).collect();
        Tile { queries, q }
    }

    /// The scores of a tile's N queries at a page, up to whole panels.
    #[inline(always)]
    fn page<S: Simd, const N: usize>(&self, simd: S, tile: &Tile, page: usize, scores: &mut Scores) {
        let queries = &self.queries[tile.queries.clone()];
        let block = queries[0].table[page] as usize * self.stored.layout.kv_heads + self.head;
        let keys = Keys {
            values: self.stored.block(self.stored.k, block),
            scales: self.stored.scales(0, block),
            scale: self.op.scale,
        };
        let (q, panels) = (tile.q.as_chunks::<N>().0, panels(queries, page));
        let mut panel = panels.start;
        while panel < panels.end {
            let at = scores.at(tile.queries.start, page * PAGE + panel * POSITIONS);
            let (to, stride) = (&mut scores.values[at..], scores.positions);
            // As many panels at once as there are registers for, and enough that additions need not wait.
            panel += match panels.end - panel {
                4.. if S::WIDE && N <= 4 => keys.panels::<S, N, 4>(simd, q, panel, to, stride),
                2.. if S::WIDE || N <= 2 => keys.panels::<S, N, 2>(simd, q, panel, to, stride),
                _ => keys.panels::<S, N, 1>(simd, q, panel, to, stride),
            };
        }
    }
}

/// The keys of a block: \[panels, head_dim, 16\].
struct Keys<'a, E> {
    values: &'a [E],
    scales: Option<&'a [f32; PAGE]>,
    scale: f32,
}

impl<E: Element> Keys<'_, E> {
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
        let mut panels: [&[[E; POSITIONS]]; P] = [&[]; P];
        for (p, values) in panels.iter_mut().enumerate() {
            *values = &self.values[(panel + p) * size..][..size].as_chunks().0[..q.len()];
        }
        let mut sums = [[simd.zero(); P]; N];
        for (i, q) in q.iter().enumerate() {
            let mut keys = [simd.zero(); P];
            for p in 0..P {
                keys[p] = E::load(simd, &panels[p][i]);
            }
            for n in 0..N {
                let q = simd.splat(q[n]);
                for p in 0..P {
                    sums[n][p] = simd.fma(q, keys[p], sums[n][p]);
                }
            }
        }
        for p in 0..P {
            let mut scale = simd.splat(self.scale);
            if let Some(scales) = self.scales {
                scale = simd.mul(scale, simd.load(&scales.as_chunks().0[panel + p]));
            }
            for (n, sums) in sums.iter().enumerate() {
                let to = &mut to[n * stride + p * POSITIONS..].as_chunks_mut().0[0];
                simd.store(simd.mul(sums[p], scale), to);
            }
        }
        P
    }
}
