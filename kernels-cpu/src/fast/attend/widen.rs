//! Pages of other elements as f32: once for all queries that read them.

use wattle_shaders::PAGE;

use super::super::simd::{LANES, Simd};
use crate::cache::{Kv, Layout, POSITIONS};

/// Where a key head has its keys and values.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub layout: Layout<'a>,
    pub kv: Kv<'a>,
    pub head: usize,
}

impl<'a> Source<'a> {
    /// The keys (side 0) or values (1) of a page as f32; in `wide` unless they are stored so.
    #[inline(always)]
    pub fn read<'w, S: Simd>(&self, simd: S, side: usize, page: u32, wide: &'w mut Vec<f32>) -> &'w [f32]
    where
        'a: 'w,
    {
        let block = page as usize * self.layout.kv_heads + self.head;
        let len = self.layout.block_len();
        let range = block * len..(block + 1) * len;
        if let Kv::F32(sides) = self.kv {
            return &sides[side][range];
        }
        wide.resize(len, 0.0);
        match self.kv {
            Kv::F32(_) => {}
            Kv::F16(sides) => {
                for (from, to) in sides[side][range].as_chunks().0.iter().zip(wide.as_chunks_mut().0) {
                    simd.store(simd.load_f16(from), to);
                }
            }
            Kv::Q8 { codes, scales } => {
                let (codes, scales) = (&codes[side][range], &scales[side][block * PAGE..][..PAGE]);
                match side {
                    0 => self.keys_of(simd, codes, scales, wide),
                    _ => self.values_of(codes, scales, wide),
                }
            }
        }
        wide
    }

    /// Codes × scales: in panels, the scales of 16 positions are a vector.
    #[inline(always)]
    fn keys_of<S: Simd>(&self, simd: S, codes: &[i8], scales: &[f32], to: &mut [f32]) {
        let panel = self.layout.head_dim * POSITIONS;
        let panels = codes.chunks_exact(panel).zip(to.chunks_exact_mut(panel));
        for ((codes, to), scales) in panels.zip(scales.as_chunks::<LANES>().0) {
            let scales = simd.load(scales);
            for (codes, to) in codes.as_chunks().0.iter().zip(to.as_chunks_mut().0) {
                simd.store(simd.mul(simd.load_i8(codes), scales), to);
            }
        }
    }

    /// The same of values: a scale for each position's row.
    #[inline(always)]
    fn values_of(&self, codes: &[i8], scales: &[f32], to: &mut [f32]) {
        let dim = self.layout.head_dim;
        for ((codes, to), scale) in codes.chunks_exact(dim).zip(to.chunks_exact_mut(dim)).zip(scales) {
            to.iter_mut().zip(codes).for_each(|(to, code)| *to = f32::from(*code) * scale);
        }
    }
}
