//! Inputs as the kernels of quantized matrices read them.

use std::mem::{self, MaybeUninit};

use wattle_shaders::FactorType;

use super::simd::{Inputs, Simd, Work, run};
use super::threads::{each, parts};
use crate::panels::BLOCK;

/// What activations are rounded to before they meet a quantized matrix, and how LoRA factors are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// Nothing: f32.
    #[default]
    Exact,
    /// 8 bits, where the matrix's codes are integers: per line and block of 32, x ≈ d · c with d = max|x| / 127 and c
    /// the nearest integer (of two, the even one). On a GPU this is done for prompts alone, whose other products are of
    /// inputs and weights rounded to f16.
    Fast,
}

impl Precision {
    /// How LoRA factors are kept.
    pub fn factors(self) -> FactorType {
        match self {
            Self::Exact => FactorType::F32,
            Self::Fast => FactorType::F16,
        }
    }
}

/// Lines of inputs, each filled up with zeros to whole blocks.
///
/// Lines lie in [`tiles`]: of a tile of N lines, first the first block of each line, then the second of each, …, so that
/// what is multiplied with a block of a matrix lies together.
pub(super) enum Lines {
    /// f32.
    Floats(Vec<[f32; BLOCK]>),
    /// 8 bits.
    Rounded(Vec<Block>),
}

/// The most lines of a tile.
pub(super) const TILE: usize = 8;

/// Divides `count` lines into tiles of 8, then 4, 2 and 1: the first line of each, and how many it has.
pub(super) fn tiles(count: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut line = 0;
    std::iter::from_fn(move || {
        let width = match count - line {
            0 => return None,
            TILE.. => TILE,
            4.. => 4,
            2.. => 2,
            _ => 1,
        };
        line += width;
        Some((line - width, width))
    })
}

/// 32 rounded inputs.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Block {
    pub codes: Inputs,
    /// d.
    pub scale: f32,
    /// The codes' sum.
    pub sum: i32,
    /// −8 times the sum: what codes around the middle have too much.
    pub middle: i32,
}

impl Lines {
    /// `x` \[lines, cols\].
    pub fn new(x: &[f32], cols: usize, rounded: bool) -> Self {
        if rounded { Self::Rounded(blocks(x, cols)) } else { Self::Floats(blocks(x, cols)) }
    }
}

/// What is made of 32 inputs.
trait Make: Send {
    /// Multiply-adds that an input is worth.
    const COST: usize;

    fn make<S: Simd>(simd: S, x: &[f32; BLOCK]) -> Self;
}

impl Make for [f32; BLOCK] {
    const COST: usize = 1;

    #[inline(always)]
    fn make<S: Simd>(_: S, x: &[f32; BLOCK]) -> Self {
        *x
    }
}

impl Make for Block {
    const COST: usize = 8;

    #[inline(always)]
    fn make<S: Simd>(simd: S, x: &[f32; BLOCK]) -> Self {
        // Sizes compare as their bits do; NaN has the largest.
        let mut max = 0;
        for x in x {
            max = max.max(x.abs().to_bits());
        }
        let max = f32::from_bits(max);
        // Where an input is not finite, the block's results must not be: infinity times zero is not a number.
        let scale = max / 127.0 + max * 0.0;
        let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        let mut codes = Inputs::default();
        let sum = simd.round(x, inverse, &mut codes);
        Self { codes, scale, sum, middle: -8 * sum }
    }
}

/// The blocks of all lines, made on several threads; their memory is not cleared first, which one of them would do.
fn blocks<T: Make>(x: &[f32], cols: usize) -> Vec<T> {
    let cols = cols.max(1);
    let count = x.len() / cols * cols.div_ceil(BLOCK);
    let mut blocks = Vec::with_capacity(count);
    each(pieces(x, cols, &mut blocks.spare_capacity_mut()[..count]), run);
    // SAFETY: the pieces are all of the `count` places (checked by `pieces`), and running one writes each of its own.
    unsafe { blocks.set_len(count) };
    blocks
}

/// Some blocks of all lines of a tile.
struct Piece<'a, T> {
    /// The tile's lines.
    x: &'a [f32],
    cols: usize,
    /// The first block's index in a line.
    first: usize,
    to: &'a mut [MaybeUninit<T>],
}

/// Divides the blocks of all lines for several threads.
fn pieces<'a, T: Make>(x: &'a [f32], cols: usize, mut to: &'a mut [MaybeUninit<T>]) -> Vec<Piece<'a, T>> {
    let (count, blocks) = (x.len() / cols, cols.div_ceil(BLOCK));
    let mut pieces = Vec::new();
    for (line, width) in tiles(count) {
        let x = &x[line * cols..][..width * cols];
        // A thread reads those columns that it has written, if all ops divide them alike.
        let per = blocks.div_ceil(parts(T::COST * x.len()).div_ceil(count.div_ceil(TILE)));
        for first in (0..blocks).step_by(per) {
            let some = per.min(blocks - first) * width;
            let (these, rest) = mem::take(&mut to).split_at_mut(some);
            pieces.push(Piece { x, cols, first, to: these });
            to = rest;
        }
    }
    assert!(to.is_empty(), "places for more blocks than the lines have");
    pieces
}

impl<T: Make> Work for Piece<'_, T> {
    type Output = ();

    /// Makes each block of its inputs, with zeros behind a line's last.
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let width = self.x.len() / self.cols;
        for (n, line) in self.x.chunks(self.cols).enumerate() {
            let mut from = line[self.first * BLOCK..].chunks(BLOCK);
            for to in self.to[n..].iter_mut().step_by(width) {
                let from = from.next().unwrap_or_default();
                match from.as_array() {
                    Some(whole) => to.write(T::make(simd, whole)),
                    None => {
                        let mut padded = [0.0; BLOCK];
                        padded[..from.len()].copy_from_slice(from);
                        to.write(T::make(simd, &padded))
                    }
                };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(x: &[f32]) -> Block {
        let Lines::Rounded(blocks) = Lines::new(x, x.len(), true) else { panic!("not rounded") };
        blocks[0]
    }

    #[test]
    fn inputs_are_rounded_to_the_nearest_code() {
        let x: Vec<f32> = (0..29).map(|i| (i as f32 - 11.3) * 0.37).collect();
        let Block { codes, scale, sum, .. } = block(&x);
        assert_eq!(scale, (28.0 - 11.3) * 0.37 / 127.0);
        let codes = codes.as_flattened();
        assert_eq!(sum, codes.iter().map(|&c| i32::from(c)).sum::<i32>());
        assert_eq!(codes[29..], [0; 3]);
        for (x, &code) in x.iter().zip(codes) {
            assert!((x - scale * f32::from(code)).abs() <= scale * 0.500_01, "{x}");
        }
    }

    #[test]
    fn odd_inputs() {
        assert_eq!((block(&[0.0; 4]).scale, block(&[0.0; 4]).sum), (0.0, 0));
        for x in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(block(&[1.0, x, 2.0]).scale.is_nan(), "{x}");
        }
        let tiny = block(&[1e-44, -1e-44]);
        assert!(tiny.codes.as_flattened().iter().all(|c| (-127..=127).contains(c)));
    }
}
