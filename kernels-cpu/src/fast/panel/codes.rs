//! The codes of a panel, and how a block of them is multiplied with rounded inputs.

use super::super::inputs::Block;
use super::super::simd::{Bytes, Inputs, Nibbles, Simd, Words};

/// Bytes between the codes in use and those that memory is asked for.
pub(in super::super) const AHEAD: usize = 8192;

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

/// How codes are stored, and how a block of them is multiplied with rounded inputs.
pub(super) trait Codes {
    /// The codes of a block of a panel.
    type Block;

    /// The blocks of a panel.
    fn blocks(codes: &[Words]) -> &[Self::Block];

    /// The products of a block with a block of each line.
    fn dots<S: Simd, const N: usize>(simd: S, codes: &Self::Block, x: &[Block; N]) -> [S::Ints; N];
}

/// 4-bit codes; `MIDDLE`: of which 8 is to be taken away.
pub(super) struct Fours<const MIDDLE: bool>;

impl<const MIDDLE: bool> Codes for Fours<MIDDLE> {
    type Block = Nibbles;

    #[inline(always)]
    fn blocks(codes: &[Words]) -> &[Nibbles] {
        codes.as_chunks().0
    }

    #[inline(always)]
    fn dots<S: Simd, const N: usize>(simd: S, codes: &Nibbles, x: &[Block; N]) -> [S::Ints; N] {
        fetch(simd, codes);
        simd.dots_4(codes, inputs(x), without(simd, x, if MIDDLE { 8 } else { 0 }))
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
pub(super) struct Eights;

impl Codes for Eights {
    type Block = Bytes;

    #[inline(always)]
    fn blocks(codes: &[Words]) -> &[Bytes] {
        codes.as_chunks().0
    }

    #[inline(always)]
    fn dots<S: Simd, const N: usize>(simd: S, codes: &Bytes, x: &[Block; N]) -> [S::Ints; N] {
        fetch(simd, codes);
        simd.dots_8(codes, inputs(x), without(simd, x, if S::ABOVE { 128 } else { 0 }))
    }
}
