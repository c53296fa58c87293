//! What this processor can do at most, for benchmarks to compare kernels with.

use std::hint::black_box;

use super::simd::{Inputs, Nibbles, Simd, Work, run};
use crate::panels::{BLOCK, PANEL};

/// Sums of f32 that are under way at the same time: more than instructions take cycles.
const SUMS: usize = 12;
/// Lines of inputs that a block of codes is multiplied with.
const LINES: usize = 8;

/// Does nothing but multiply and add f32 in registers, and says how many times.
pub fn floats(rounds: usize) -> usize {
    run(Floats(rounds));
    rounds * SUMS * PANEL
}

/// Multiplies a block of 4-bit codes with eight lines of 8-bit inputs, all in the nearest cache, again and again, and
/// says how many products that were.
pub fn integers(rounds: usize) -> usize {
    run(Integers(rounds));
    rounds * LINES * PANEL * BLOCK
}

struct Floats(usize);

impl Work for Floats {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (a, b) = (simd.splat(black_box(1.0)), simd.splat(black_box(0.5)));
        let mut sums = [simd.zero(); SUMS];
        for _ in 0..self.0 {
            for sum in &mut sums {
                *sum = simd.fma(a, b, *sum);
            }
        }
        black_box(sums.map(|sum| simd.sum(sum)));
    }
}

struct Integers(usize);

impl Work for Integers {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let codes: Nibbles = [[0x37; 4 * PANEL]; 4];
        let inputs: [Inputs; LINES] = [[[1, -2, 3, -4]; 8]; LINES];
        let mut sums = [simd.ints(0); LINES];
        for _ in 0..self.0 {
            let inputs = black_box(&inputs);
            sums = simd.dots_4(black_box(&codes), inputs.each_ref(), sums);
        }
        black_box(sums.map(|sum| simd.sum(simd.floats(sum))));
    }
}
