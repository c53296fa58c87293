//! Panels against their elements, and against themselves on other instruction sets.

use half::f16;

use super::super::simd::run_all;
use super::*;
use crate::panels::{Offset, Scales};

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
struct RowsOf<'a> {
    matrix: &'a Panels<'a>,
    start: usize,
    end: usize,
    x: &'a Lines,
}

/// Blocks of all lines.
fn blocks(x: &Lines) -> usize {
    match x {
        Lines::Floats(blocks) => blocks.len(),
        Lines::Rounded(blocks) => blocks.len(),
    }
}

impl Work for RowsOf<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Vec<f32> {
        let Self { matrix, start, end, x } = self;
        let mut sums = vec![f32::NAN; blocks(x) / matrix.blocks() * (end - start)];
        let y = &mut sums.chunks_mut(end - start).collect::<Vec<_>>();
        Products { matrix, rows: start..end, x, done: 0, y, meanwhile: &mut Meanwhile::none() }.run(simd);
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
            let per = cols.div_ceil(BLOCK);
            let own = |&(first, width): &(usize, usize)| (first..first + width).contains(&line);
            let (first, width) = tiles(blocks.len() / per).find(own).unwrap();
            let value = |col: usize| {
                let block = &blocks[first * per + col / BLOCK * width + line - first];
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
        for (rows, cols, group, lines) in [(16, 32, 32, 1), (33, 70, 96, 9), (20, 128, 64, 5), (5, 31, 32, 2)]
        {
            let arrays = Arrays::new(rows, cols, group, bits, offset);
            let (matrix, exact) = (&arrays.panels(), inputs(lines, cols));
            for fast in [false, offset != Offset::NormalFloat] {
                let x = &Lines::new(&exact, cols, fast);
                // Some rows only: they begin and end inside panels.
                let (start, end) = (index % 4, rows - index % 2);
                for sums in run_all(RowsOf { matrix, start, end, x }) {
                    for (at, sum) in sums.iter().enumerate() {
                        let (line, row) = (at / (end - start), start + at % (end - start));
                        let line_x = rounded(x, line, cols, &exact[line * cols..][..cols]);
                        let w = |col| f64::from(matrix.element(row, col));
                        let products = |f: &dyn Fn(usize) -> f64| (0..cols).map(f).sum::<f64>();
                        let of_rounded = products(&|col| w(col) * line_x[col].0);
                        let size = products(&|col| (w(col) * line_x[col].0).abs()) + 1.0;
                        // f32 sums: a few units of the last place of the terms' size.
                        let error = (f64::from(*sum) - of_rounded).abs();
                        assert!(error <= 2e-6 * size, "{bits:?} {offset:?} {rows}×{cols} {fast}: {error:e}");
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
fn a_row_read_whole_is_its_elements() {
    for (bits, offset) in FORMATS {
        for (rows, cols, group) in [(16, 32, 32), (33, 70, 96), (5, 31, 32)] {
            let arrays = Arrays::new(rows, cols, group, bits, offset);
            let matrix = arrays.panels();
            for row in 0..rows {
                let mut whole = vec![f32::NAN; cols];
                matrix.read_row(row, &mut whole);
                let single: Vec<f32> = (0..cols).map(|col| matrix.element(row, col)).collect();
                assert_eq!(whole, single, "{bits:?} {offset:?} {rows}×{cols}");
            }
        }
    }
}

fn neighbours_change_no_bit(bits: Bits, offset: Offset, cols: usize) {
    let arrays = Arrays::new(40, cols, 32, bits, offset);
    let (matrix, exact) = (&arrays.panels(), inputs(11, cols));
    for fast in [false, offset != Offset::NormalFloat] {
        let whole = run_all(RowsOf { matrix, start: 0, end: 40, x: &Lines::new(&exact, cols, fast) });
        // The sets with fused multiply-add agree.
        assert!(whole[1..].windows(2).all(|pair| pair[0] == pair[1]), "{bits:?} {offset:?} {fast}");
        for (line, x) in exact.chunks(cols).enumerate() {
            let alone = run_all(RowsOf { matrix, start: 0, end: 40, x: &Lines::new(x, cols, fast) });
            for (whole, alone) in whole.iter().zip(alone) {
                assert_eq!(whole[line * 40..][..40], alone, "{bits:?} {offset:?} {fast}");
            }
        }
    }
}

#[test]
fn neighbours_and_instruction_sets_change_no_bit() {
    for (bits, offset) in FORMATS {
        neighbours_change_no_bit(bits, offset, 96);
    }
}

#[test]
fn panels_that_do_not_stay_in_a_cache_together_change_no_bit() {
    for (bits, offset, panels) in [(Bits::Four, Offset::Minimum, 2), (Bits::Eight, Offset::Middle, 1)] {
        let cols = NEAR / panels / bits.block_bytes() * BLOCK;
        assert_eq!(near(&Arrays::new(40, cols, 32, bits, offset).panels(), 11), panels, "of three");
        neighbours_change_no_bit(bits, offset, cols);
    }
}
