//! Products of a panel of a quantized matrix with several lines of inputs.
//!
//! Each of the 16 rows has its own lane, so that no sum is ever divided: groups, blocks and columns follow each other
//! in the matrix's order, whatever the instruction set and however many lines there are.
//!
//! Plain loops, and traits where code differs: a closure that the compiler does not inline is compiled without the
//! instruction set, and then every instruction is a call.

mod codes;
mod scaling;
mod sums;
#[cfg(test)]
mod tests;

use std::ops::Range;

use codes::{Codes, Eights, Fours};
use scaling::{Chunk, Groups, Scaling};
use sums::Sums;

use super::inputs::{Block, Lines, TILE, tiles};
use super::meanwhile::Meanwhile;
use super::simd::{LANES, Simd, Words, Work, run};
use crate::panels::{BLOCK, Bits, NF4, Offsets, Panels};
pub(super) use codes::AHEAD;

/// Bytes of codes that stay in a second-level cache while inputs go by.
const NEAR: usize = 1 << 18;

/// The products of rows of a matrix and all lines of inputs: elements of `y` \[lines\]\[rows\] from `done` on.
pub(super) fn products(
    matrix: &Panels,
    rows: Range<usize>,
    x: &Lines,
    done: usize,
    y: &mut [&mut [f32]],
    meanwhile: &mut Meanwhile,
) {
    run(Products { matrix, rows, x, done, y, meanwhile });
}

struct Products<'a, 'b> {
    matrix: &'a Panels<'a>,
    rows: Range<usize>,
    x: &'a Lines,
    done: usize,
    y: &'a mut [&'b mut [f32]],
    meanwhile: &'a mut Meanwhile,
}

impl Work for Products<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { matrix, rows, x, done, y, meanwhile } = self;
        let lines = x.len() / matrix.blocks();
        let panels = rows.start / LANES..rows.end.div_ceil(LANES);
        let near = near(matrix, lines).min(panels.len());
        let mut scaling = Scaling::new(matrix, near);
        let mut rooms = [Chunk::default(); 2];
        let step = near.max(1);
        for start in panels.clone().step_by(step) {
            let some = start..panels.end.min(start + step);
            scaling.keep(simd, some.clone());
            for _ in some.clone() {
                meanwhile.turn(simd);
            }
            for (line, width) in tiles(lines) {
                for index in some.clone() {
                    let (panel, first) = (Panel::new(matrix, index, scaling.of(index)), index * LANES);
                    let wanted = rows.start.max(first)..rows.end.min(first + LANES);
                    let at = done + wanted.start - rows.start;
                    let lanes = wanted.start - first..wanted.end - first;
                    panel.tile(
                        simd,
                        x,
                        [line, width],
                        &mut Sums { y: &mut *y, at, lanes, rooms: &mut rooms },
                    );
                }
            }
        }
    }
}

/// Panels that stay near while all lines are multiplied with them: none for few lines, which need each once; for more
/// lines as many as a second-level cache holds, so that a tile stays in the first-level one while panels go by, and what
/// is written of a line lies together.
fn near(matrix: &Panels, lines: usize) -> usize {
    if lines <= TILE { 0 } else { (NEAR / (matrix.blocks() * matrix.bits.block_bytes())).max(1) }
}

/// How offsets enter a product.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shift {
    /// Not at all, or as a part of the codes' own meaning.
    Middle,
    /// Times the inputs' sum.
    Minimum,
    /// Taken from codes.
    Zero,
}

fn shift(matrix: &Panels) -> Shift {
    match matrix.offsets {
        Offsets::Middle | Offsets::NormalFloat => Shift::Middle,
        Offsets::Minimum(_) => Shift::Minimum,
        Offsets::Zero(_) => Shift::Zero,
    }
}

/// One panel of a matrix.
struct Panel<'a> {
    matrix: &'a Panels<'a>,
    codes: &'a [Words],
    groups: Groups<'a>,
    blocks: usize,
}

impl<'a> Panel<'a> {
    fn new(matrix: &'a Panels<'a>, index: usize, groups: Groups<'a>) -> Self {
        let blocks = matrix.blocks();
        let bytes = blocks * matrix.bits.block_bytes();
        let codes = matrix.codes[index * bytes..][..bytes].as_chunks().0;
        Self { matrix, codes, groups, blocks }
    }

    /// The sums of a tile of lines, as many at once as there are registers for.
    #[inline(always)]
    fn tile<S: Simd>(&self, simd: S, x: &Lines, [line, width]: [usize; 2], to: &mut Sums) {
        let most = match x {
            Lines::Rounded(_) if S::WIDE => 8,
            _ => 4,
        };
        let mut n = 0;
        while n < width {
            n += match most.min(width) {
                8.. => self.part::<S, 8>(simd, x, [line, width, n], to),
                4.. => self.part::<S, 4>(simd, x, [line, width, n], to),
                2.. => self.part::<S, 2>(simd, x, [line, width, n], to),
                _ => self.part::<S, 1>(simd, x, [line, width, n], to),
            };
        }
    }

    /// The sums of N lines, the n-th of a tile and those after it; returns N.
    #[inline(always)]
    fn part<S: Simd, const N: usize>(
        &self,
        simd: S,
        x: &Lines,
        [line, stride, n]: [usize; 3],
        to: &mut Sums,
    ) -> usize {
        simd.call(Sixteen::<N> { panel: self, x, at: [line, stride, n], to });
        N
    }

    /// The 16 sums of each line of rounded inputs.
    #[inline(always)]
    fn rounded<S: Simd, const N: usize>(
        &self,
        simd: S,
        x: Part<Block>,
        rooms: &mut [Chunk; 2],
    ) -> [S::Vector; N] {
        match (self.matrix.bits, shift(self.matrix)) {
            (Bits::Four, Shift::Middle) => {
                let codes = &Fours::<true>(self.codes.as_chunks().0);
                if self.matrix.group == BLOCK {
                    self.small_groups(simd, codes, x, rooms)
                } else {
                    self.integers::<S, _, false, N>(simd, codes, x, rooms)
                }
            }
            (Bits::Four, _) => {
                let codes = &Fours::<false>(self.codes.as_chunks().0);
                self.integers::<S, _, true, N>(simd, codes, x, rooms)
            }
            (Bits::Eight, Shift::Middle) => {
                let codes = &Eights(self.codes.as_chunks().0);
                if self.matrix.group == BLOCK {
                    self.small_groups(simd, codes, x, rooms)
                } else {
                    self.integers::<S, _, false, N>(simd, codes, x, rooms)
                }
            }
            (Bits::Eight, _) => {
                self.integers::<S, _, true, N>(simd, &Eights(self.codes.as_chunks().0), x, rooms)
            }
        }
    }

    /// Scales the sums of blocks, each of which is a group.
    #[inline(always)]
    fn small_groups<S: Simd, C: Codes, const N: usize>(
        &self,
        simd: S,
        codes: &C,
        x: Part<Block>,
        rooms: &mut [Chunk; 2],
    ) -> [S::Vector; N] {
        let mut totals = [simd.zero(); N];
        for groups in self.groups.chunks() {
            let scales = self.groups.scales(simd, groups.clone(), &mut rooms[0]);
            for (block, scale) in groups.zip(scales) {
                self.groups.later.scales(simd, block);
                let x = x.block::<N>(block);
                let ints = codes.dots(simd, block, x);
                let scale = simd.load(scale);
                for n in 0..N {
                    let sum = simd.mul(simd.floats(ints[n]), simd.splat(x[n].scale));
                    totals[n] = simd.fma(sum, scale, totals[n]);
                }
            }
        }
        totals
    }

    /// Scales and offsets the sums of groups.
    #[inline(always)]
    fn integers<S: Simd, C: Codes, const SHIFTED: bool, const N: usize>(
        &self,
        simd: S,
        codes: &C,
        x: Part<Block>,
        rooms: &mut [Chunk; 2],
    ) -> [S::Vector; N] {
        let per = self.matrix.group.div_ceil(BLOCK);
        let mut totals = [simd.zero(); N];
        for groups in self.groups.chunks() {
            let [room, offset_room] = &mut *rooms;
            let scales = self.groups.scales(simd, groups.clone(), room);
            let offsets = self.groups.offsets(simd, groups.clone(), offset_room);
            for (group, (scale, offset)) in groups.zip(scales.iter().zip(offsets)) {
                let mut sums = [simd.zero(); N];
                let mut inputs = [0.0; N];
                for block in group * per..self.blocks.min((group + 1) * per) {
                    self.groups.later.scales(simd, block);
                    if SHIFTED {
                        self.groups.later.offsets(simd, block);
                    }
                    let x = x.block::<N>(block);
                    let ints = codes.dots(simd, block, x);
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
                        if shift(self.matrix) == Shift::Minimum {
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

    /// The 16 sums of each line of f32 inputs. Each sum has four parts, for the columns 4i, 4i + 1, …, so that their
    /// additions need not wait for each other.
    #[inline(always)]
    fn floats<S: Simd, const N: usize>(
        &self,
        simd: S,
        x: Part<[f32; BLOCK]>,
        rooms: &mut [Chunk; 2],
    ) -> [S::Vector; N] {
        let per = self.matrix.group.div_ceil(BLOCK);
        let mut totals = [[simd.zero(); N]; 4];
        let vectors = self.matrix.bits.block_bytes() / size_of::<Words>();
        let halves = if self.matrix.bits == Bits::Four { 2 } else { 1 };
        for groups in self.groups.chunks() {
            let [room, offset_room] = &mut *rooms;
            let scales = self.groups.scales(simd, groups.clone(), room);
            let offsets = self.groups.offsets(simd, groups.clone(), offset_room);
            for (group, (scale, offset)) in groups.zip(scales.iter().zip(offsets)) {
                let (scale, offset) = (simd.load(scale), simd.load(offset));
                for block in group * per..self.blocks.min((group + 1) * per) {
                    self.groups.later.scales(simd, block);
                    self.groups.later.offsets(simd, block);
                    let x: &[_; N] = x.block(block);
                    for (v, words) in self.codes[block * vectors..][..vectors].iter().enumerate() {
                        for half in 0..halves {
                            for (part, totals) in totals.iter_mut().enumerate() {
                                let element = self.elements(simd, words, [part, half], scale, offset);
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

    /// The elements of 16 rows in one column: part and half of a vector of codes.
    #[inline(always)]
    fn elements<S: Simd>(
        &self,
        simd: S,
        words: &Words,
        [part, half]: [usize; 2],
        scale: S::Vector,
        offset: S::Vector,
    ) -> S::Vector {
        let shift = (8 * part + 4 * half) as u32;
        let codes = match (self.matrix.bits, self.matrix.offsets) {
            (_, Offsets::NormalFloat) => return simd.mul(scale, simd.lookup(&NF4, words, shift)),
            (Bits::Four, _) => simd.nibbles(words, shift),
            (Bits::Eight, _) => simd.bytes(words, shift),
        };
        match self.matrix.offsets {
            Offsets::Middle if self.matrix.bits == Bits::Four => {
                simd.mul(scale, simd.fma(codes, simd.splat(1.0), simd.splat(-8.0)))
            }
            Offsets::Middle | Offsets::NormalFloat => simd.mul(scale, codes),
            Offsets::Minimum(_) => simd.fma(scale, codes, offset),
            Offsets::Zero(_) => simd.mul(scale, simd.fma(offset, simd.splat(-1.0), codes)),
        }
    }
}

/// The 16 sums of each of N lines.
struct Sixteen<'a, 'b, 'c, const N: usize> {
    panel: &'a Panel<'a>,
    x: &'a Lines,
    /// The tile's first line, its lines, and the first of those that are meant.
    at: [usize; 3],
    to: &'a mut Sums<'b, 'c>,
}

impl<const N: usize> Work for Sixteen<'_, '_, '_, N> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { panel, x, at: [line, stride, n], to } = self;
        let at = line * panel.blocks + n;
        let sums: [_; N] = match x {
            Lines::Rounded(x) => panel.rounded(simd, Part { blocks: &x[at..], stride }, to.rooms),
            Lines::Floats(x) => panel.floats(simd, Part { blocks: &x[at..], stride }, to.rooms),
        };
        for (index, sums) in sums.into_iter().enumerate() {
            to.put(simd, line + n + index, sums);
        }
    }
}

/// Some lines of a tile.
#[derive(Clone, Copy)]
struct Part<'a, T> {
    /// From the first block of the first line on.
    blocks: &'a [T],
    /// Lines of the tile: from one block of a line to the next.
    stride: usize,
}

impl<T> Part<'_, T> {
    /// Block `block` of N lines.
    #[inline(always)]
    fn block<const N: usize>(&self, block: usize) -> &[T; N] {
        match self.blocks[block * self.stride..].first_chunk() {
            Some(blocks) => blocks,
            None => unreachable!("a tile has its lines"),
        }
    }
}
