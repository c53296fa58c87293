//! Products of a panel of a quantized matrix with several lines of inputs.
//!
//! Each of the 16 rows has its own lane, so that no sum is ever divided: groups, blocks and columns follow each other
//! in the matrix's order, whatever the instruction set and however many lines there are.
//!
//! Plain loops, and traits where code differs: a closure that the compiler does not inline is compiled without the
//! instruction set, and then every instruction is a call.

mod scaling;
#[cfg(test)]
mod tests;

use std::ops::Range;

use scaling::Scaling;

use super::inputs::{Block, Lines, TILE, tiles};
use super::lora_up::Meanwhile;
use super::simd::{Bytes, Inputs, LANES, Nibbles, Simd, Words, Work, run};
use crate::panels::{BLOCK, Bits, NF4, Offsets, Panels};

/// Bytes between the codes in use and those that memory is asked for.
pub(super) const AHEAD: usize = 8192;

/// Bytes of inputs that stay in a second-level cache while panels go by.
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
        let near = (NEAR / (matrix.blocks() * size_of::<Block>())).next_multiple_of(TILE);
        let mut scales = Scaling::new(matrix);
        for start in (0..y.len()).step_by(near) {
            for index in rows.start / LANES..rows.end.div_ceil(LANES) {
                scales.read(simd, matrix, index);
                meanwhile.turn(simd);
                let (panel, first) = (Panel::new(matrix, index, &scales), index * LANES);
                let lanes = rows.start.max(first)..rows.end.min(first + LANES);
                let mut put = |line: usize, sums: &[f32; LANES]| {
                    let to = &mut y[line][done + lanes.start - rows.start..][..lanes.len()];
                    match to.as_mut_array() {
                        Some(whole) => *whole = *sums,
                        None => to.copy_from_slice(&sums[lanes.start - first..][..lanes.len()]),
                    }
                };
                for (line, width) in tiles(near.min(x.len() / matrix.blocks() - start)) {
                    panel.tile(simd, x, [start + line, width], &mut put);
                }
            }
        }
    }
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
#[derive(Clone, Copy)]
struct Panel<'a> {
    matrix: &'a Panels<'a>,
    codes: &'a [Words],
    scales: &'a Scaling,
    blocks: usize,
}

impl<'a> Panel<'a> {
    fn new(matrix: &'a Panels<'a>, index: usize, scales: &'a Scaling) -> Self {
        let blocks = matrix.blocks();
        let bytes = blocks * matrix.bits.block_bytes();
        let codes = matrix.codes[index * bytes..][..bytes].as_chunks().0;
        Self { matrix, codes, scales, blocks }
    }

    /// The sums of a tile of lines, as many at once as there are registers for.
    #[inline(always)]
    fn tile<S: Simd>(
        &self,
        simd: S,
        x: &Lines,
        [line, width]: [usize; 2],
        put: &mut impl FnMut(usize, &[f32; LANES]),
    ) {
        let most = match x {
            Lines::Rounded(_) if S::WIDE => 8,
            _ => 4,
        };
        let mut n = 0;
        while n < width {
            n += match most.min(width) {
                8.. => self.part::<S, 8>(simd, x, [line, width, n], put),
                4.. => self.part::<S, 4>(simd, x, [line, width, n], put),
                2.. => self.part::<S, 2>(simd, x, [line, width, n], put),
                _ => self.part::<S, 1>(simd, x, [line, width, n], put),
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
        put: &mut impl FnMut(usize, &[f32; LANES]),
    ) -> usize {
        let at = line * self.blocks + n;
        let sums: [_; N] = match x {
            Lines::Rounded(x) => self.rounded(simd, Part { blocks: &x[at..], stride }),
            Lines::Floats(x) => self.floats(simd, Part { blocks: &x[at..], stride }),
        };
        for (index, sums) in sums.into_iter().enumerate() {
            let mut values = [0.0; LANES];
            simd.store(sums, &mut values);
            put(line + n + index, &values);
        }
        N
    }

    /// The 16 sums of each line of rounded inputs.
    #[inline(always)]
    fn rounded<S: Simd, const N: usize>(&self, simd: S, x: Part<Block>) -> [S::Vector; N] {
        match (self.matrix.bits, shift(self.matrix)) {
            (Bits::Four, Shift::Middle) => {
                let codes = &Fours::<true>(self.codes.as_chunks().0);
                if self.matrix.group == BLOCK {
                    self.small_groups(simd, codes, x)
                } else {
                    self.integers::<S, _, false, N>(simd, codes, x)
                }
            }
            (Bits::Four, _) => {
                let codes = &Fours::<false>(self.codes.as_chunks().0);
                self.integers::<S, _, true, N>(simd, codes, x)
            }
            (Bits::Eight, Shift::Middle) => {
                let codes = &Eights(self.codes.as_chunks().0);
                if self.matrix.group == BLOCK {
                    self.small_groups(simd, codes, x)
                } else {
                    self.integers::<S, _, false, N>(simd, codes, x)
                }
            }
            (Bits::Eight, _) => self.integers::<S, _, true, N>(simd, &Eights(self.codes.as_chunks().0), x),
        }
    }

    /// Scales the sums of blocks, each of which is a group.
    #[inline(always)]
    fn small_groups<S: Simd, C: Codes, const N: usize>(
        &self,
        simd: S,
        codes: &C,
        x: Part<Block>,
    ) -> [S::Vector; N] {
        let mut totals = [simd.zero(); N];
        for (block, scale) in self.scales.scales.iter().enumerate() {
            let x = x.block::<N>(block);
            let ints = codes.dots(simd, block, x);
            let scale = simd.load(scale);
            for n in 0..N {
                let sum = simd.mul(simd.floats(ints[n]), simd.splat(x[n].scale));
                totals[n] = simd.fma(sum, scale, totals[n]);
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
    ) -> [S::Vector; N] {
        let per = self.matrix.group.div_ceil(BLOCK);
        let mut totals = [simd.zero(); N];
        for (group, scale) in self.scales.scales.iter().enumerate() {
            let mut sums = [simd.zero(); N];
            let mut inputs = [0.0; N];
            for block in group * per..self.blocks.min((group + 1) * per) {
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
                let offset = simd.load(&self.scales.offsets[group]);
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
        totals
    }

    /// The 16 sums of each line of f32 inputs. Each sum has four parts, for the columns 4i, 4i + 1, …, so that their
    /// additions need not wait for each other.
    #[inline(always)]
    fn floats<S: Simd, const N: usize>(&self, simd: S, x: Part<[f32; BLOCK]>) -> [S::Vector; N] {
        let per = self.matrix.group.div_ceil(BLOCK);
        let mut totals = [[simd.zero(); N]; 4];
        let vectors = self.matrix.bits.block_bytes() / size_of::<Words>();
        let halves = if self.matrix.bits == Bits::Four { 2 } else { 1 };
        for (group, scale) in self.scales.scales.iter().enumerate() {
            let scale = simd.load(scale);
            let offset = match self.scales.offsets.get(group) {
                Some(offset) => simd.load(offset),
                None => simd.zero(),
            };
            for block in group * per..self.blocks.min((group + 1) * per) {
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

/// The codes of N blocks.
#[inline(always)]
fn inputs<const N: usize>(x: &[Block; N]) -> [&Inputs; N] {
    let mut inputs = [&x[0].codes; N];
    for n in 0..N {
        inputs[n] = &x[n].codes;
    }
    inputs
}

/// Where sums of N blocks begin whose codes are `above` more than is meant, a multiple of 8.
#[inline(always)]
fn without<S: Simd, const N: usize>(simd: S, x: &[Block; N], above: i32) -> [S::Ints; N] {
    let mut sums = [simd.ints(0); N];
    if above > 0 {
        for n in 0..N {
            sums[n] = simd.ints(above / 8 * x[n].middle);
        }
    }
    sums
}

/// The codes of a panel, and how a block of them is multiplied with rounded inputs.
trait Codes {
    /// The products of block `block` with a block of each line.
    fn dots<S: Simd, const N: usize>(&self, simd: S, block: usize, x: &[Block; N]) -> [S::Ints; N];
}

/// 4-bit codes; `MIDDLE`: of which 8 is to be taken away.
struct Fours<'a, const MIDDLE: bool>(&'a [Nibbles]);

impl<const MIDDLE: bool> Codes for Fours<'_, MIDDLE> {
    #[inline(always)]
    fn dots<S: Simd, const N: usize>(&self, simd: S, block: usize, x: &[Block; N]) -> [S::Ints; N] {
        fetch(simd, &self.0[block]);
        simd.dots_4(&self.0[block], inputs(x), without(simd, x, if MIDDLE { 8 } else { 0 }))
    }
}

/// Asks for the codes that are needed [`AHEAD`] bytes after these: processors do not look beyond a page by themselves.
#[inline(always)]
fn fetch<S: Simd>(simd: S, codes: &[Words]) {
    for words in codes {
        simd.prefetch(words.as_ptr().wrapping_add(AHEAD));
    }
}

/// 8-bit codes.
struct Eights<'a>(&'a [Bytes]);

impl Codes for Eights<'_> {
    #[inline(always)]
    fn dots<S: Simd, const N: usize>(&self, simd: S, block: usize, x: &[Block; N]) -> [S::Ints; N] {
        fetch(simd, &self.0[block]);
        simd.dots_8(&self.0[block], inputs(x), without(simd, x, if S::ABOVE { 128 } else { 0 }))
    }
}
