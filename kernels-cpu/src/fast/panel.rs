//! Products of a panel of a quantized matrix with several lines of inputs.
//!
//! Each of the 16 rows has its own lane, so that no sum is ever divided: groups, blocks and columns follow each other
//! in the matrix's order, whatever the instruction set and however many lines there are.
//!
//! Plain loops, and traits where code differs: a closure that the compiler does not inline is compiled without the
//! instruction set, and then every instruction is a call.

mod codes;
mod kinds;
mod scaling;
#[cfg(test)]
mod tests;

use std::ops::Range;

use codes::{Eights, Fours};
use kinds::{AnyGroups, Floats, Kind, SmallGroups};
use scaling::{Chunk, Groups, Scaling};

use super::inputs::{Lines, TILE, tiles};
use super::meanwhile::Meanwhile;
use super::simd::{LANES, Simd, Words, Work, run};
use crate::panels::{BLOCK, Bits, Offsets, Panels};
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
        let x = match self.x {
            Lines::Floats(x) => return self.of::<S, Floats>(simd, x),
            Lines::Rounded(x) => x,
        };
        let shifted = matches!(self.matrix.offsets, Offsets::Minimum(_) | Offsets::Zero(_));
        match (self.matrix.bits, shifted, self.matrix.group) {
            (Bits::Four, false, BLOCK) => self.of::<S, SmallGroups<Fours<true>>>(simd, x),
            (Bits::Four, false, _) => self.of::<S, AnyGroups<Fours<true>, false>>(simd, x),
            (Bits::Four, true, _) => self.of::<S, AnyGroups<Fours<false>, true>>(simd, x),
            (Bits::Eight, false, BLOCK) => self.of::<S, SmallGroups<Eights>>(simd, x),
            (Bits::Eight, false, _) => self.of::<S, AnyGroups<Eights, false>>(simd, x),
            (Bits::Eight, true, _) => self.of::<S, AnyGroups<Eights, true>>(simd, x),
        }
    }
}

impl Products<'_, '_> {
    /// The same for a kind of panels and lines.
    #[inline(always)]
    fn of<S: Simd, K: Kind>(self, simd: S, x: &[K::Inputs]) {
        let Self { matrix, rows, done, y, meanwhile, .. } = self;
        let lines = x.len() / matrix.blocks();
        let panels = rows.start / LANES..rows.end.div_ceil(LANES);
        let near = near(matrix, lines).min(panels.len());
        let mut scaling = Scaling::new(matrix, near);
        let most = if S::WIDE { K::LINES } else { 4 };
        // Lines that are multiplied at once read each panel once; others of few lines read it again while it is in the
        // nearest cache.
        let at_once = lines <= most && lines.is_power_of_two();
        let step = if at_once { panels.len() } else { near }.max(1);
        for start in panels.clone().step_by(step) {
            let some = start..panels.end.min(start + step);
            scaling.keep(simd, some.clone());
            for (line, width) in tiles(lines) {
                let mut n = 0;
                while n < width {
                    let stretch: Stretch<K> = Stretch {
                        matrix,
                        rows: rows.clone(),
                        panels: some.clone(),
                        scaling: &scaling,
                        x: Part { blocks: &x[line * matrix.blocks() + n..], stride: width },
                        line: line + n,
                        done,
                        y: &mut *y,
                        meanwhile: &mut *meanwhile,
                    };
                    n += match most.min(width) {
                        8.. => stretch.of::<S, 8>(simd),
                        4.. => stretch.of::<S, 4>(simd),
                        2.. => stretch.of::<S, 2>(simd),
                        _ => stretch.of::<S, 1>(simd),
                    };
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

/// Some panels, and some lines that are multiplied with them.
struct Stretch<'a, 'b, K: Kind> {
    matrix: &'a Panels<'a>,
    /// Which are wanted.
    rows: Range<usize>,
    panels: Range<usize>,
    scaling: &'a Scaling<'a>,
    x: Part<'a, K::Inputs>,
    /// The first of the lines.
    line: usize,
    done: usize,
    y: &'a mut [&'b mut [f32]],
    /// A turn for each panel: of one line, beside more there is nothing to fetch.
    meanwhile: &'a mut Meanwhile,
}

impl<K: Kind> Stretch<'_, '_, K> {
    /// The sums of N lines; returns N.
    #[inline(always)]
    fn of<S: Simd, const N: usize>(self, simd: S) -> usize {
        simd.call(Sixteens::<K, N>(self));
        N
    }
}

/// The 16 sums of each of N lines, panel by panel.
struct Sixteens<'a, 'b, K: Kind, const N: usize>(Stretch<'a, 'b, K>);

impl<K: Kind, const N: usize> Work for Sixteens<'_, '_, K, N> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Stretch { matrix, rows, panels, scaling, x, line, done, y, meanwhile } = self.0;
        let rooms = &mut [Chunk::default(); 2];
        for index in panels {
            meanwhile.turn(simd);
            let panel = Panel::new(matrix, index, scaling.of(index));
            let sums = K::sums::<S, N>(simd, &panel, x, rooms);
            let first = index * LANES;
            let wanted = rows.start.max(first)..rows.end.min(first + LANES);
            let (at, lanes) = (done + wanted.start - rows.start, wanted.start - first..wanted.end - first);
            for (y, sums) in y[line..][..N].iter_mut().zip(sums) {
                put(simd, sums, lanes.clone(), &mut y[at..][..lanes.len()]);
            }
        }
    }
}

/// Writes some of 16 sums.
#[inline(always)]
fn put<S: Simd>(simd: S, sums: S::Vector, lanes: Range<usize>, to: &mut [f32]) {
    match to.as_mut_array() {
        Some(whole) => simd.store(sums, whole),
        None => {
            let mut values = [0.0; LANES];
            simd.store(sums, &mut values);
            to.copy_from_slice(&values[lanes]);
        }
    }
}

/// One panel of a matrix.
struct Panel<'a> {
    matrix: &'a Panels<'a>,
    codes: &'a [Words],
    groups: Groups<'a>,
}

impl<'a> Panel<'a> {
    #[inline(always)]
    fn new(matrix: &'a Panels<'a>, index: usize, groups: Groups<'a>) -> Self {
        let bytes = matrix.blocks() * matrix.bits.block_bytes();
        let codes = matrix.codes[index * bytes..][..bytes].as_chunks().0;
        Self { matrix, codes, groups }
    }

    /// The blocks of a group.
    #[inline(always)]
    fn blocks_of(&self, group: usize) -> Range<usize> {
        let per = self.matrix.group.div_ceil(BLOCK);
        group * per..self.matrix.blocks().min((group + 1) * per)
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
