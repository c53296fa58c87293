//! Inputs as the kernels of quantized matrices read them.

use super::math::ROUND;
use super::simd::{Inputs, Simd, Work, run};
use super::threads::lines;
use crate::panels::BLOCK;

/// What activations are rounded to before they meet a quantized matrix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// Nothing: f32.
    #[default]
    Exact,
    /// 8 bits, where the matrix's codes are integers: per line and block of 32, x ≈ d · c with d = max|x| / 127 and c
    /// the nearest integer (of two, the even one).
    Fast,
}

/// Lines of inputs, each filled up with zeros to whole blocks.
pub(super) enum Lines {
    /// f32 \[lines, blocks, 32\].
    Floats(Vec<[f32; BLOCK]>),
    /// \[lines, blocks\].
    Rounded(Vec<Block>),
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
    /// Blocks of all lines.
    pub fn len(&self) -> usize {
        match self {
            Self::Floats(blocks) => blocks.len(),
            Self::Rounded(blocks) => blocks.len(),
        }
    }

    /// `x` \[lines, cols\].
    pub fn new(x: &[f32], cols: usize, rounded: bool) -> Self {
        let blocks = cols.div_ceil(BLOCK);
        let count = x.len() / cols.max(1) * blocks;
        let padded = |x: &[f32]| {
            let mut block = [0.0; BLOCK];
            block[..x.len()].copy_from_slice(x);
            block
        };
        if !rounded {
            return Self::Floats(x.chunks(cols).flat_map(|line| line.chunks(BLOCK).map(padded)).collect());
        }
        let mut to = vec![Block { codes: Inputs::default(), scale: 0.0, sum: 0, middle: 0 }; count];
        lines(&mut to, blocks, x.len(), |first, to| {
            let x = &x[first * cols..];
            let from = x.chunks(cols).flat_map(|line| line.chunks(BLOCK));
            run(Round { from: from.map(padded), to });
        });
        Self::Rounded(to)
    }
}

struct Round<'a, I> {
    from: I,
    to: &'a mut [Block],
}

impl<I: Iterator<Item = [f32; BLOCK]>> Work for Round<'_, I> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        self.to.iter_mut().zip(self.from).for_each(|(to, from)| *to = round(&from));
    }
}

#[inline(always)]
fn round(x: &[f32; BLOCK]) -> Block {
    let mut max = 0.0_f32;
    // 0, or NaN where an input is not finite: the block's results must not be.
    let mut finite = 0.0;
    for &x in x {
        max = max.max(x.abs());
        finite += x * 0.0;
    }
    let scale = max / 127.0 + finite;
    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    let mut codes = [0_i8; BLOCK];
    let mut sum = 0;
    for (code, x) in codes.iter_mut().zip(x) {
        let bits = (x * inverse + ROUND).to_bits() as i32;
        // A subnormal scale has no finite inverse.
        *code = (bits - ROUND.to_bits() as i32).clamp(-127, 127) as i8;
        sum += i32::from(*code);
    }
    let mut fours = Inputs::default();
    for (four, codes) in fours.iter_mut().zip(codes.as_chunks().0) {
        *four = *codes;
    }
    Block { codes: fours, scale, sum, middle: -8 * sum }
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
