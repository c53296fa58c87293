//! Without any extension: what the compiler makes of plain loops.

use half::{bf16, f16};

use super::{Bytes, Inputs, LANES, Nibbles, Simd, Words, Work};

/// Proves nothing, as nothing is needed.
#[derive(Clone, Copy)]
pub(in super::super) struct Portable;

impl Simd for Portable {
    type Vector = [f32; LANES];
    type Ints = [i32; LANES];
    const WIDE: bool = false;

    #[inline(never)]
    fn call<W: Work>(self, work: W) -> W::Output {
        work.run(self)
    }
    #[inline(always)]
    fn zero(self) -> Self::Vector {
        [0.0; LANES]
    }
    #[inline(always)]
    fn splat(self, value: f32) -> Self::Vector {
        [value; LANES]
    }
    #[inline(always)]
    fn load(self, values: &[f32; LANES]) -> Self::Vector {
        *values
    }
    #[inline(always)]
    fn load_f16(self, values: &[f16; LANES]) -> Self::Vector {
        let mut lanes = [0.0; LANES];
        for (lane, value) in lanes.iter_mut().zip(values) {
            *lane = value.to_f32();
        }
        lanes
    }
    #[inline(always)]
    fn load_bf16(self, values: &[bf16; LANES]) -> Self::Vector {
        let mut lanes = [0.0; LANES];
        for (lane, value) in lanes.iter_mut().zip(values) {
            *lane = f32::from_bits(u32::from(value.to_bits()) << 16);
        }
        lanes
    }
    #[inline(always)]
    fn store(self, vector: Self::Vector, values: &mut [f32; LANES]) {
        *values = vector;
    }
    #[inline(always)]
    fn mul(self, mut a: Self::Vector, b: Self::Vector) -> Self::Vector {
        a.iter_mut().zip(b).for_each(|(a, b)| *a *= b);
        a
    }
    #[inline(always)]
    fn fma(self, a: Self::Vector, b: Self::Vector, mut c: Self::Vector) -> Self::Vector {
        for (c, (a, b)) in c.iter_mut().zip(a.iter().zip(&b)) {
            *c = self.mul_add(*a, *b, *c);
        }
        c
    }
    #[inline(always)]
    fn mul_add(self, a: f32, b: f32, c: f32) -> f32 {
        // f32::mul_add would be a call into the C library.
        a * b + c
    }
    #[inline(always)]
    fn prefetch<T>(self, _: *const T) {}
    #[inline(always)]
    fn sum(self, mut lanes: Self::Vector) -> f32 {
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                lanes[i] += lanes[i + half];
            }
        }
        lanes[0]
    }

    #[inline(always)]
    fn ints(self, value: i32) -> Self::Ints {
        [value; LANES]
    }
    #[inline(always)]
    fn floats(self, ints: Self::Ints) -> Self::Vector {
        ints.map(|x| x as f32)
    }
    #[inline(always)]
    fn load_u8(self, values: &[u8; LANES]) -> Self::Vector {
        values.map(f32::from)
    }
    #[inline(always)]
    fn load_i8(self, values: &[i8; LANES]) -> Self::Vector {
        values.map(f32::from)
    }
    #[inline(always)]
    fn nibbles(self, words: &Words, shift: u32) -> Self::Vector {
        lanes(words).map(|word| (word >> shift & 15) as f32)
    }
    #[inline(always)]
    fn bytes(self, words: &Words, shift: u32) -> Self::Vector {
        lanes(words).map(|word| f32::from((word >> shift) as i8))
    }
    #[inline(always)]
    fn lookup(self, table: &[f32; 16], words: &Words, shift: u32) -> Self::Vector {
        lanes(words).map(|word| table[(word >> shift & 15) as usize])
    }
    #[inline(always)]
    fn dots_4<const N: usize>(
        self,
        codes: &Nibbles,
        x: [&Inputs; N],
        mut sums: [Self::Ints; N],
    ) -> [Self::Ints; N] {
        for (v, words) in codes.iter().enumerate() {
            for (sums, x) in sums.iter_mut().zip(x) {
                add_words(sums, words, x[v], |byte| i32::from(byte & 15));
                add_words(sums, words, x[v + 4], |byte| i32::from(byte >> 4));
            }
        }
        sums
    }
    #[inline(always)]
    fn dots_8<const N: usize>(
        self,
        codes: &Bytes,
        x: [&Inputs; N],
        mut sums: [Self::Ints; N],
    ) -> [Self::Ints; N] {
        for (v, words) in codes.iter().enumerate() {
            for (sums, x) in sums.iter_mut().zip(x) {
                add_words(sums, words, x[v], |byte| i32::from(byte as i8));
            }
        }
        sums
    }
}

/// Each row's four bytes as a number.
#[inline(always)]
fn lanes(words: &Words) -> [u32; LANES] {
    let mut lanes = [0; LANES];
    for (lane, word) in lanes.iter_mut().zip(words.as_chunks().0) {
        *lane = u32::from_le_bytes(*word);
    }
    lanes
}

/// Adds each row's four codes times four inputs.
#[inline(always)]
fn add_words(sums: &mut [i32; LANES], words: &Words, x: [i8; 4], code: impl Fn(u8) -> i32) {
    for (sum, word) in sums.iter_mut().zip(words.as_chunks::<4>().0) {
        for (&byte, x) in word.iter().zip(x) {
            *sum += code(byte) * i32::from(x);
        }
    }
}
