//! How the 16 sums of a panel are made, by the kind of its codes and of the inputs.

use std::marker::PhantomData;

use super::super::inputs::Block;
use super::super::simd::{Simd, Words};
use super::codes::Codes;
use super::scaling::Chunk;
use super::{Panel, Part};
use crate::panels::{BLOCK, Bits, NF4, Offsets};

/// A way to the sums of a panel.
pub(super) trait Kind {
    /// 32 inputs of a line.
    type Inputs: Copy;
    /// Lines that there are registers for at once, where [`Simd::WIDE`] says so.
    const LINES: usize;

    /// The 16 sums of each of N lines.
    fn sums<S: Simd, const N: usize>(
        simd: S,
        panel: &Panel,
        x: Part<Self::Inputs>,
        rooms: &mut [Chunk; 2],
    ) -> [S::Vector; N];
}

/// Rounded inputs, and groups of one block.
pub(super) struct SmallGroups<C>(PhantomData<C>);

impl<C: Codes> Kind for SmallGroups<C> {
    type Inputs = Block;
    const LINES: usize = 8;

    #[inline(always)]
    fn sums<S: Simd, const N: usize>(
        simd: S,
        panel: &Panel,
        x: Part<Block>,
        rooms: &mut [Chunk; 2],
    ) -> [S::Vector; N] {
        let blocks = C::blocks(panel.codes);
        let mut totals = [simd.zero(); N];
        for groups in panel.groups.chunks() {
            let scales = panel.groups.scales(simd, groups.clone(), &mut rooms[0]);
            for ((block, codes), scale) in groups.clone().zip(&blocks[groups]).zip(scales) {
                panel.groups.later.scales(simd, block);
                let x = x.block::<N>(block);
                let ints = C::dots(simd, codes, x);
                let scale = simd.load(scale);
                for n in 0..N {
                    let sum = simd.mul(simd.floats(ints[n]), simd.splat(x[n].scale));
                    totals[n] = simd.fma(sum, scale, totals[n]);
                }
            }
        }
        totals
    }
}

/// Rounded inputs, and groups of any size.
pub(super) struct AnyGroups<C, const SHIFTED: bool>(PhantomData<C>);

impl<C: Codes, const SHIFTED: bool> Kind for AnyGroups<C, SHIFTED> {
    type Inputs = Block;
    const LINES: usize = 8;

    #[inline(always)]
    fn sums<S: Simd, const N: usize>(
        simd: S,
        panel: &Panel,
        x: Part<Block>,
        rooms: &mut [Chunk; 2],
    ) -> [S::Vector; N] {
        let minimum = matches!(panel.matrix.offsets, Offsets::Minimum(_));
        let blocks = C::blocks(panel.codes);
        let mut totals = [simd.zero(); N];
        for groups in panel.groups.chunks() {
            let [room, offset_room] = &mut *rooms;
            let scales = panel.groups.scales(simd, groups.clone(), room);
            let offsets = panel.groups.offsets(simd, groups.clone(), offset_room);
            for (group, (scale, offset)) in groups.zip(scales.iter().zip(offsets)) {
                let mut sums = [simd.zero(); N];
                let mut inputs = [0.0; N];
                for block in panel.blocks_of(group) {
                    panel.groups.later.scales(simd, block);
                    if SHIFTED {
                        panel.groups.later.offsets(simd, block);
                    }
                    let x = x.block::<N>(block);
                    let ints = C::dots(simd, &blocks[block], x);
                    for n in 0..N {
                        sums[n] = simd.fma(simd.floats(ints[n]), simd.splat(x[n].scale), sums[n]);
                        if SHIFTED {
                            inputs[n] += x[n].scale * x[n].sum as f32;
                        }
                    }
                }
                let scale = simd.load(scale);
                if SHIFTED {
                    let offset = simd.load(offset);
                    for n in 0..N {
                        if minimum {
                            totals[n] = simd.fma(offset, simd.splat(inputs[n]), totals[n]);
                        } else {
                            sums[n] = simd.fma(offset, simd.splat(-inputs[n]), sums[n]);
                        }
                    }
                }
                for n in 0..N {
                    totals[n] = simd.fma(sums[n], scale, totals[n]);
                }
            }
        }
        totals
    }
}

/// f32 inputs. Each sum has four parts, for the columns 4i, 4i + 1, …, so that their additions need not wait for each
/// other.
pub(super) struct Floats;

impl Kind for Floats {
    type Inputs = [f32; BLOCK];
    const LINES: usize = 4;

    #[inline(always)]
    fn sums<S: Simd, const N: usize>(
        simd: S,
        panel: &Panel,
        x: Part<[f32; BLOCK]>,
        rooms: &mut [Chunk; 2],
    ) -> [S::Vector; N] {
        let mut totals = [[simd.zero(); N]; 4];
        let vectors = panel.matrix.bits.block_bytes() / size_of::<Words>();
        let halves = if panel.matrix.bits == Bits::Four { 2 } else { 1 };
        for groups in panel.groups.chunks() {
            let [room, offset_room] = &mut *rooms;
            let scales = panel.groups.scales(simd, groups.clone(), room);
            let offsets = panel.groups.offsets(simd, groups.clone(), offset_room);
            for (group, (scale, offset)) in groups.zip(scales.iter().zip(offsets)) {
                let (scale, offset) = (simd.load(scale), simd.load(offset));
                for block in panel.blocks_of(group) {
                    panel.groups.later.scales(simd, block);
                    panel.groups.later.offsets(simd, block);
                    let x: &[_; N] = x.block(block);
                    for (v, words) in panel.codes[block * vectors..][..vectors].iter().enumerate() {
                        for half in 0..halves {
                            for (part, totals) in totals.iter_mut().enumerate() {
                                let element = elements(simd, panel, words, [part, half], scale, offset);
                                let col = half * BLOCK / 2 + 4 * v + part;
                                for (total, x) in totals.iter_mut().zip(x) {
                                    *total = simd.fma(element, simd.splat(x[col]), *total);
                                }
                            }
                        }
                    }
                }
            }
        }
        let ([a, b, c, d], ones) = (totals, simd.splat(1.0));
        let mut sums = a;
        for n in 0..N {
            sums[n] = simd.fma(simd.fma(b[n], ones, a[n]), ones, simd.fma(d[n], ones, c[n]));
        }
        sums
    }
}

/// The elements of 16 rows in one column: part and half of a vector of codes.
#[inline(always)]
fn elements<S: Simd>(
    simd: S,
    panel: &Panel,
    words: &Words,
    [part, half]: [usize; 2],
    scale: S::Vector,
    offset: S::Vector,
) -> S::Vector {
    let (bits, offsets) = (panel.matrix.bits, panel.matrix.offsets);
    let shift = (8 * part + 4 * half) as u32;
    let codes = match (bits, offsets) {
        (_, Offsets::NormalFloat) => return simd.mul(scale, simd.lookup(&NF4, words, shift)),
        (Bits::Four, _) => simd.nibbles(words, shift),
        (Bits::Eight, _) => simd.bytes(words, shift),
    };
    match offsets {
        Offsets::Middle if bits == Bits::Four => {
            simd.mul(scale, simd.fma(codes, simd.splat(1.0), simd.splat(-8.0)))
        }
        Offsets::Middle | Offsets::NormalFloat => simd.mul(scale, codes),
        Offsets::Minimum(_) => simd.fma(scale, codes, offset),
        Offsets::Zero(_) => simd.mul(scale, simd.fma(offset, simd.splat(-1.0), codes)),
    }
}
