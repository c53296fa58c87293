//! Products of a panel of a quantized matrix with several lines of inputs.
//!
//! Each of the 16 rows has its own lane, so that no sum is ever divided: groups, blocks and columns follow each other
//! in the matrix's order, whatever the instruction set and however many lines there are.
//!
//! Plain loops, and traits where code differs: a closure that the compiler does not inline is compiled without the
//! instruction set, and then every instruction is a call.

use std::ops::Range;

use half::{bf16, f16};

use super::inputs::{Block, Lines};
use super::simd::{Bytes, LANES, Nibbles, Simd, Words};
use crate::panels::{BLOCK, Bits, NF4, Offsets, Panels, Scales};

/// The 16 elements from `start` on.
#[inline(always)]
fn sixteen<T: Copy + Default>(values: &[T], start: usize) -> [T; LANES] {
    values[start..].first_chunk().copied().unwrap_or([T::default(); LANES])
}

/// The scales of a group of a panel.
#[inline(always)]
fn scales<S: Simd>(simd: S, scales: &Scales, start: usize) -> S::Vector {
    match scales {
        Scales::F32(values) => simd.load(&sixteen::<f32>(values, start)),
        Scales::F16(values) => simd.load_f16(&sixteen::<f16>(values, start)),
        Scales::Bf16(values) => simd.load_bf16(&sixteen::<bf16>(values, start)),
    }
}

/// Calls `put(line, row, sums)` with the products of rows of a matrix and all lines of inputs: those of one line with
/// neighbouring rows, of which `row` (counted from the first of `rows`) is the first.
#[inline(always)]
pub(super) fn products<S: Simd>(
    simd: S,
    matrix: &Panels,
    rows: Range<usize>,
    x: &Lines,
    put: &mut impl FnMut(usize, usize, &[f32]),
) {
    let count = x.len() / matrix.blocks();
    // As many lines at once as there are registers for their sums.
    let most = match x {
        Lines::Rounded(_) if S::WIDE => 8,
        _ => 4,
    };
    for index in rows.start / LANES..rows.end.div_ceil(LANES) {
        let (panel, first) = (Panel::new(matrix, index), index * LANES);
        let lanes = rows.start.max(first) - first..rows.end.min(first + LANES) - first;
        let mut put = |line: usize, sums: &[f32; LANES]| {
            put(line, first + lanes.start - rows.start, &sums[lanes.clone()]);
        };
        let mut line = 0;
        while line < count {
            line += match most.min(count - line) {
                8.. => panel.tile::<S, 8>(simd, x, line, &mut put),
                4.. => panel.tile::<S, 4>(simd, x, line, &mut put),
                2.. => panel.tile::<S, 2>(simd, x, line, &mut put),
                _ => panel.tile::<S, 1>(simd, x, line, &mut put),
            };
        }
    }
}

/// One panel of a matrix.
#[derive(Clone, Copy)]
struct Panel<'a> {
    matrix: &'a Panels<'a>,
    codes: &'a [Words],
    /// Where its scales begin.
    scales: usize,
}

impl<'a> Panel<'a> {
    fn new(matrix: &'a Panels<'a>, index: usize) -> Self {
        let bytes = matrix.blocks() * matrix.bits.block_bytes();
        let codes = matrix.codes[index * bytes..][..bytes].as_chunks().0;
        Self { matrix, codes, scales: index * matrix.groups() * LANES }
    }

    /// The sums of N lines from `line` on; returns N.
    #[inline(always)]
    fn tile<S: Simd, const N: usize>(
        &self,
        simd: S,
        x: &Lines,
        line: usize,
        put: &mut impl FnMut(usize, &[f32; LANES]),
    ) -> usize {
        let blocks = self.matrix.blocks();
        let of = |n: usize| (line + n) * blocks..(line + n + 1) * blocks;
        let sums = match x {
            Lines::Rounded(x) => self.rounded(simd, std::array::from_fn::<_, N, _>(|n| &x[of(n)])),
            Lines::Floats(x) => self.floats(simd, std::array::from_fn::<_, N, _>(|n| &x[of(n)])),
        };
        for (n, sums) in sums.into_iter().enumerate() {
            let mut values = [0.0; LANES];
            simd.store(sums, &mut values);
            put(line + n, &values);
        }
        N
    }

    /// The blocks of a group, and where its scales lie.
    #[inline(always)]
    fn group(&self, index: usize) -> (Range<usize>, usize) {
        let per = self.matrix.group.div_ceil(BLOCK);
        let blocks = index * per..self.matrix.blocks().min((index + 1) * per);
        (blocks, self.scales + index * LANES)
    }

    /// The 16 sums of each line of rounded inputs.
    #[inline(always)]
    fn rounded<S: Simd, const N: usize>(&self, simd: S, x: [&[Block]; N]) -> [S::Vector; N] {
        match (self.matrix.bits, self.matrix.offsets) {
            (Bits::Four, Offsets::Middle) => self.integers(simd, &Fours::<8>(self.codes.as_chunks().0), x),
            (Bits::Four, _) => self.integers(simd, &Fours::<0>(self.codes.as_chunks().0), x),
            (Bits::Eight, _) => self.integers(simd, &Eights(self.codes.as_chunks().0), x),
        }
    }

    /// Scales and offsets the sums of blocks.
    #[inline(always)]
    fn integers<S: Simd, C: Codes, const N: usize>(
        &self,
        simd: S,
        codes: &C,
        x: [&[Block]; N],
    ) -> [S::Vector; N] {
        let mut totals = [simd.zero(); N];
        // Where all codes are around the middle, the sums of inputs are not asked for.
        let shifted = matches!(self.matrix.offsets, Offsets::Minimum(_) | Offsets::Zero(_));
        for index in 0..self.matrix.groups() {
            let (blocks, at) = self.group(index);
            let scale = scales(simd, &self.matrix.scales, at);
            let mut sums = [simd.zero(); N];
            let mut inputs = [0.0; N];
            for block in blocks {
                let x = x.map(|x| &x[block]);
                let ints = codes.dots(simd, block, x);
                for n in 0..N {
                    sums[n] = simd.fma(simd.floats(ints[n]), simd.splat(x[n].scale), sums[n]);
                    if shifted {
                        inputs[n] += x[n].scale * x[n].sum as f32;
                    }
                }
            }
            for n in 0..N {
                totals[n] = match self.matrix.offsets {
                    Offsets::Middle | Offsets::NormalFloat => simd.fma(sums[n], scale, totals[n]),
                    Offsets::Minimum(minima) => {
                        let minima = simd.load_f16(&sixteen(minima, at));
                        let total = simd.fma(minima, simd.splat(inputs[n]), totals[n]);
                        simd.fma(sums[n], scale, total)
                    }
                    Offsets::Zero(zeros) => {
                        let zeros = simd.load_u8(&sixteen(zeros, at));
                        let centered = simd.fma(zeros, simd.splat(-inputs[n]), sums[n]);
                        simd.fma(centered, scale, totals[n])
                    }
                };
            }
        }
        totals
    }

    /// The 16 sums of each line of f32 inputs. Each sum has four parts, for the columns 4i, 4i + 1, …, so that their
    /// additions need not wait for each other.
    #[inline(always)]
    fn floats<S: Simd, const N: usize>(&self, simd: S, x: [&[[f32; BLOCK]]; N]) -> [S::Vector; N] {
        let mut totals = [[simd.zero(); N]; 4];
        let vectors = self.matrix.bits.block_bytes() / size_of::<Words>();
        let halves = if self.matrix.bits == Bits::Four { 2 } else { 1 };
        for index in 0..self.matrix.groups() {
            let (blocks, at) = self.group(index);
            let scale = scales(simd, &self.matrix.scales, at);
            for block in blocks {
                let x = x.map(|x| &x[block]);
                for (v, words) in self.codes[block * vectors..][..vectors].iter().enumerate() {
                    for half in 0..halves {
                        for (part, totals) in totals.iter_mut().enumerate() {
                            let element = self.elements(simd, words, part, half, at, scale);
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

    /// The elements of 16 rows in one column.
    #[inline(always)]
    fn elements<S: Simd>(
        &self,
        simd: S,
        words: &Words,
        part: usize,
        half: usize,
        at: usize,
        scale: S::Vector,
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
            Offsets::Minimum(minima) => simd.fma(scale, codes, simd.load_f16(&sixteen(minima, at))),
            Offsets::Zero(zeros) => {
                let zeros = simd.load_u8(&sixteen(zeros, at));
                simd.mul(scale, simd.fma(zeros, simd.splat(-1.0), codes))
            }
        }
    }
}

/// The codes of a panel, and how a block of them is multiplied with rounded inputs.
trait Codes {
    /// The products of block `block` with a block of each line.
    fn dots<S: Simd, const N: usize>(&self, simd: S, block: usize, x: [&Block; N]) -> [S::Ints; N];
}

/// 4-bit codes, of which `MIDDLE` is to be taken away.
struct Fours<'a, const MIDDLE: i32>(&'a [Nibbles]);

impl<const MIDDLE: i32> Codes for Fours<'_, MIDDLE> {
    #[inline(always)]
    fn dots<S: Simd, const N: usize>(&self, simd: S, block: usize, x: [&Block; N]) -> [S::Ints; N] {
        let mut sums = [simd.ints(0); N];
        if MIDDLE != 0 {
            for n in 0..N {
                sums[n] = simd.ints(-MIDDLE * x[n].sum);
            }
        }
        simd.dots_4(&self.0[block], x.map(|x| &x.codes), sums)
    }
}

/// 8-bit codes.
struct Eights<'a>(&'a [Bytes]);

impl Codes for Eights<'_> {
    #[inline(always)]
    fn dots<S: Simd, const N: usize>(&self, simd: S, block: usize, x: [&Block; N]) -> [S::Ints; N] {
        simd.dots_8(&self.0[block], x.map(|x| &x.codes), [simd.ints(0); N])
    }
}

#[cfg(test)]
mod tests {
    use super::super::simd::{Work, run_all};
    use super::*;
    use crate::panels::Offset;

    /// A matrix with any codes, scales and offsets, as owned arrays.
    struct Arrays {
        rows: usize,
        cols: usize,
        group: usize,
        bits: Bits,
        offset: Offset,
        codes: Vec<u8>,
        scales: Vec<f32>,
        minima: Vec<f16>,
        zeros: Vec<u8>,
    }

    impl Arrays {
        fn new(rows: usize, cols: usize, group: usize, bits: Bits, offset: Offset) -> Self {
            let (panels, mut state) = (rows.div_ceil(LANES), 12_345_u32);
            let mut next = || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 16) as u8
            };
            let scales = panels * cols.div_ceil(group) * LANES;
            Self {
                rows,
                cols,
                group,
                bits,
                offset,
                codes: (0..panels * cols.div_ceil(BLOCK) * bits.block_bytes()).map(|_| next()).collect(),
                scales: (0..scales).map(|_| f32::from(next()) / 512.0 - 0.2).collect(),
                minima: (0..scales).map(|_| f16::from_f32(f32::from(next()) / 64.0 - 2.0)).collect(),
                zeros: (0..scales).map(|_| next() % 16).collect(),
            }
        }

        fn panels(&self) -> Panels<'_> {
            let Self { rows, cols, group, bits, .. } = *self;
            let offsets = match self.offset {
                Offset::Middle => Offsets::Middle,
                Offset::Minimum => Offsets::Minimum(&self.minima),
                Offset::Zero => Offsets::Zero(&self.zeros),
                Offset::NormalFloat => Offsets::NormalFloat,
            };
            Panels { rows, cols, group, bits, codes: &self.codes, scales: Scales::F32(&self.scales), offsets }
        }
    }

    /// Products of all lines with the rows from `start` to `end`: \[lines, rows\].
    #[derive(Clone, Copy)]
    struct Products<'a> {
        matrix: &'a Panels<'a>,
        start: usize,
        end: usize,
        x: &'a Lines,
    }

    impl Work for Products<'_> {
        type Output = Vec<f32>;

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> Vec<f32> {
            let width = self.end - self.start;
            let mut sums = vec![f32::NAN; self.x.len() / self.matrix.blocks() * width];
            products(simd, self.matrix, self.start..self.end, self.x, &mut |line, row, values| {
                sums[line * width + row..][..values.len()].copy_from_slice(values);
            });
            sums
        }
    }

    const FORMATS: [(Bits, Offset); 6] = [
        (Bits::Four, Offset::Middle),
        (Bits::Four, Offset::Minimum),
        (Bits::Four, Offset::Zero),
        (Bits::Four, Offset::NormalFloat),
        (Bits::Eight, Offset::Middle),
        (Bits::Eight, Offset::Zero),
    ];

    fn inputs(lines: usize, cols: usize) -> Vec<f32> {
        (0..lines * cols).map(|i| ((i * 37 + 11) % 101) as f32 / 50.0 - 1.0).collect()
    }

    /// What a line of inputs is after rounding, and by how much each of them may have moved.
    fn rounded(x: &Lines, line: usize, cols: usize, exact: &[f32]) -> Vec<(f64, f64)> {
        match x {
            Lines::Floats(_) => exact.iter().map(|&x| (f64::from(x), 0.0)).collect(),
            Lines::Rounded(blocks) => {
                let blocks = &blocks[line * cols.div_ceil(BLOCK)..];
                let value = |col: usize| {
                    let block = &blocks[col / BLOCK];
                    let code = block.codes.as_flattened()[col % BLOCK];
                    (f64::from(block.scale) * f64::from(code), f64::from(block.scale) * 0.5)
                };
                (0..cols).map(value).collect()
            }
        }
    }

    #[test]
    fn products_are_those_of_the_elements_on_every_instruction_set() {
        for (index, (bits, offset)) in FORMATS.into_iter().enumerate() {
            for (rows, cols, group, lines) in
                [(16, 32, 32, 1), (33, 70, 96, 9), (20, 128, 64, 5), (5, 31, 32, 2)]
            {
                let arrays = Arrays::new(rows, cols, group, bits, offset);
                let (matrix, exact) = (&arrays.panels(), inputs(lines, cols));
                for fast in [false, offset != Offset::NormalFloat] {
                    let x = &Lines::new(&exact, cols, fast);
                    // Some rows only: they begin and end inside panels.
                    let (start, end) = (index % 4, rows - index % 2);
                    for sums in run_all(Products { matrix, start, end, x }) {
                        for (at, sum) in sums.iter().enumerate() {
                            let (line, row) = (at / (end - start), start + at % (end - start));
                            let line_x = rounded(x, line, cols, &exact[line * cols..][..cols]);
                            let w = |col| f64::from(matrix.element(row, col));
                            let products = |f: &dyn Fn(usize) -> f64| (0..cols).map(f).sum::<f64>();
                            let of_rounded = products(&|col| w(col) * line_x[col].0);
                            let size = products(&|col| (w(col) * line_x[col].0).abs()) + 1.0;
                            // f32 sums: a few units of the last place of the terms' size.
                            let error = (f64::from(*sum) - of_rounded).abs();
                            assert!(
                                error <= 2e-6 * size,
                                "{bits:?} {offset:?} {rows}×{cols} {fast}: {error:e}"
                            );
                            // Rounding moved each input by half a step at most, and so the sum by that much.
                            let of_exact = products(&|col| w(col) * f64::from(exact[line * cols + col]));
                            let bound = products(&|col| w(col).abs() * line_x[col].1 * 1.0001) + 2e-6 * size;
                            assert!((f64::from(*sum) - of_exact).abs() <= bound);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn neighbours_and_instruction_sets_change_no_bit() {
        for (bits, offset) in FORMATS {
            let arrays = Arrays::new(40, 96, 32, bits, offset);
            let (matrix, exact) = (&arrays.panels(), inputs(11, 96));
            for fast in [false, offset != Offset::NormalFloat] {
                let whole = run_all(Products { matrix, start: 0, end: 40, x: &Lines::new(&exact, 96, fast) });
                // The sets with fused multiply-add agree.
                assert!(whole[1..].windows(2).all(|pair| pair[0] == pair[1]), "{bits:?} {offset:?} {fast}");
                for (line, x) in exact.chunks(96).enumerate() {
                    let alone = run_all(Products { matrix, start: 0, end: 40, x: &Lines::new(x, 96, fast) });
                    for (whole, alone) in whole.iter().zip(alone) {
                        assert_eq!(whole[line * 40..][..40], alone, "{bits:?} {offset:?} {fast}");
                    }
                }
            }
        }
    }
}
