//! What this processor can do at most, for benchmarks to compare kernels with.

use std::hint::black_box;

use super::panel::AHEAD;
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

/// Reads everything once, as fast as one thread can: whole vectors, what comes asked for ahead. Their sum, so that nothing
/// can be left out.
pub fn read(values: &[[f32; PANEL]]) -> f32 {
    run(Read(values))
}

struct Read<'a>(&'a [[f32; PANEL]]);

impl Work for Read<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        let (groups, rest) = self.0.as_chunks::<SUMS>();
        let (one, mut sums) = (simd.splat(1.0), [simd.zero(); SUMS]);
        for group in groups {
            for n in 0..SUMS {
                simd.prefetch(group[n].as_ptr().wrapping_byte_add(AHEAD));
                sums[n] = simd.fma(simd.load(&group[n]), one, sums[n]);
            }
        }
        for values in rest {
            sums[0] = simd.fma(simd.load(values), one, sums[0]);
        }
        sums.map(|sum| simd.sum(sum)).iter().sum()
    }
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
