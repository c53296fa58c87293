//! Vectors of 16 lanes, in the instruction sets that a machine may have, and the choice among them.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
mod neon;
mod portable;
#[cfg(test)]
mod tests;

#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
use std::arch::is_aarch64_feature_detected;

use half::{bf16, f16};

use super::math::ROUND;
use portable::Portable;

/// Lanes of every sum.
pub(super) const LANES: usize = 16;

/// An instruction set. A value of an implementing type is a proof that the machine has it.
pub(super) trait Simd: Copy + Send + Sync {
    /// 16 lanes of f32.
    type Vector: Copy;
    /// 16 lanes of i32.
    type Ints: Copy;
    /// Whether there are registers for tiles of 4 × 4 sums and what they are made of (else 2 × 2).
    const WIDE: bool;
    /// Whether [`Self::dots_8`] takes codes for 128 more than they are.
    const ABOVE: bool = false;

    /// Does `work` in a function of its own, compiled for this instruction set: no other code competes for registers.
    fn call<W: Work>(self, work: W) -> W::Output;

    fn zero(self) -> Self::Vector;
    fn splat(self, value: f32) -> Self::Vector;
    fn load(self, values: &[f32; LANES]) -> Self::Vector;
    fn load_f16(self, values: &[f16; LANES]) -> Self::Vector;
    fn load_bf16(self, values: &[bf16; LANES]) -> Self::Vector;
    fn store(self, vector: Self::Vector, values: &mut [f32; LANES]);
    fn mul(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// a · b + c, lane by lane; rounded once where the instruction set can.
    fn fma(self, a: Self::Vector, b: Self::Vector, c: Self::Vector) -> Self::Vector;
    /// a · b + c, rounded as [`Self::fma`] rounds.
    fn mul_add(self, a: f32, b: f32, c: f32) -> f32;

    /// Asks for the memory around an address, which need not be valid, to be fetched into the second-level cache: what
    /// waits to enter the nearest one is few lines, too few for what memory gives meanwhile.
    fn prefetch<T>(self, address: *const T);
    /// The sum of the lanes in a fixed tree: the upper half is added to the lower, until one is left.
    fn sum(self, vector: Self::Vector) -> f32;

    /// Makes codes of x times `inverse`, the nearest integers (of two, the even one) from −127 to 127; returns their sum.
    #[inline(always)]
    fn round(self, x: &[f32; 2 * LANES], inverse: f32, codes: &mut Inputs) -> i32 {
        let mut values = [0.0; 2 * LANES];
        for ((code, value), x) in codes.as_flattened_mut().iter_mut().zip(&mut values).zip(x) {
            let bits = (x * inverse + ROUND).to_bits() as i32;
            // A subnormal scale has no finite inverse.
            let rounded = (bits - ROUND.to_bits() as i32).clamp(-127, 127);
            (*code, *value) = (rounded as i8, rounded as f32);
        }
        // Small integers, so that the sum is exact. In vectors, which compilers do not make of a sum of integers here.
        let halves = values.as_chunks().0;
        self.sum(self.fma(self.load(&halves[0]), self.splat(1.0), self.load(&halves[1]))) as i32
    }

    /// The same number in all lanes.
    fn ints(self, value: i32) -> Self::Ints;
    /// The nearest f32 of each lane.
    fn floats(self, ints: Self::Ints) -> Self::Vector;
    /// Unsigned bytes.
    fn load_u8(self, values: &[u8; LANES]) -> Self::Vector;
    /// Signed bytes.
    fn load_i8(self, values: &[i8; LANES]) -> Self::Vector;
    /// The four bits from `shift` on of each little-endian word of codes.
    fn nibbles(self, words: &Words, shift: u32) -> Self::Vector;
    /// The signed byte from bit `shift` on of each word.
    fn bytes(self, words: &Words, shift: u32) -> Self::Vector;
    /// The elements of a table that [`Self::nibbles`] are indices of.
    fn lookup(self, table: &[f32; 16], words: &Words, shift: u32) -> Self::Vector;
    /// Adds a block of 4-bit codes (see [`crate::panels`]) times each of N lines of inputs, row by row.
    fn dots_4<const N: usize>(
        self,
        codes: &Nibbles,
        x: [&Inputs; N],
        sums: [Self::Ints; N],
    ) -> [Self::Ints; N];
    /// The same of 8-bit codes; of codes + 128, if [`Self::ABOVE`].
    fn dots_8<const N: usize>(self, codes: &Bytes, x: [&Inputs; N], sums: [Self::Ints; N])
    -> [Self::Ints; N];
}

/// Four bytes of each of 16 rows.
pub(super) type Words = [u8; 4 * LANES];
/// The 4-bit codes of a block of a panel.
pub(super) type Nibbles = [Words; 4];
/// The 8-bit codes of a block of a panel.
pub(super) type Bytes = [Words; 8];
/// A block of inputs, from −127 to 127, in fours.
pub(super) type Inputs = [[i8; 4]; 8];

/// Elements that vectors are loaded from.
pub(super) trait Element: Copy + Default + Sync {
    fn load<S: Simd>(simd: S, values: &[Self; LANES]) -> S::Vector;
}

impl Element for f32 {
    #[inline(always)]
    fn load<S: Simd>(simd: S, values: &[Self; LANES]) -> S::Vector {
        simd.load(values)
    }
}

impl Element for u8 {
    #[inline(always)]
    fn load<S: Simd>(simd: S, values: &[Self; LANES]) -> S::Vector {
        simd.load_u8(values)
    }
}

impl Element for f16 {
    #[inline(always)]
    fn load<S: Simd>(simd: S, values: &[Self; LANES]) -> S::Vector {
        simd.load_f16(values)
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn load<S: Simd>(simd: S, values: &[Self; LANES]) -> S::Vector {
        simd.load_bf16(values)
    }
}

/// Something to do with whatever instruction set there is. `run` must be `#[inline(always)]`, so that it is compiled
/// for that set.
pub(super) trait Work {
    type Output;
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

#[cfg(target_arch = "x86_64")]
fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
}

#[cfg(target_arch = "x86_64")]
fn has_avx512() -> bool {
    has_avx2() && is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw")
}

#[cfg(target_arch = "x86_64")]
fn has_vnni() -> bool {
    has_avx512() && is_x86_feature_detected!("avx512vnni")
}

/// Everywhere but in miri, which does not know all of its instructions.
#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
fn has_neon() -> bool {
    is_aarch64_feature_detected!("neon") && !cfg!(miri)
}

#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
fn has_dot_products() -> bool {
    has_neon() && is_aarch64_feature_detected!("dotprod")
}

/// Runs `work` with the best instruction set of the machine.
pub(super) fn run<W: Work>(work: W) -> W::Output {
    #[cfg(target_arch = "x86_64")]
    {
        if has_vnni() {
            return avx512::Avx512::<true>(()).call(work);
        }
        if has_avx512() {
            return avx512::Avx512::<false>(()).call(work);
        }
        if has_avx2() {
            return avx2::Avx2(()).call(work);
        }
    }
    #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
    {
        if has_dot_products() {
            return neon::Neon::<true>(()).call(work);
        }
        if has_neon() {
            return neon::Neon::<false>(()).call(work);
        }
    }
    Portable.call(work)
}

/// The name of the instruction set that the fast kernels use.
pub fn instruction_set() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        if has_vnni() {
            return "AVX-512 VNNI";
        }
        if has_avx512() {
            return "AVX-512";
        }
        if has_avx2() {
            return "AVX2";
        }
    }
    #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
    {
        if has_dot_products() {
            return "NEON dot product";
        }
        if has_neon() {
            return "NEON";
        }
    }
    "portable"
}

/// Runs `work` with every instruction set of the machine.
#[cfg(test)]
pub(super) fn run_all<W: Work + Copy>(work: W) -> Vec<W::Output> {
    let mut outputs = vec![Portable.call(work)];
    #[cfg(target_arch = "x86_64")]
    if has_avx2() {
        outputs.push(avx2::Avx2(()).call(work));
    }
    #[cfg(target_arch = "x86_64")]
    if has_avx512() {
        outputs.push(avx512::Avx512::<false>(()).call(work));
    }
    #[cfg(target_arch = "x86_64")]
    if has_vnni() {
        outputs.push(avx512::Avx512::<true>(()).call(work));
    }
    #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
    if has_neon() {
        outputs.push(neon::Neon::<false>(()).call(work));
    }
    #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
    if has_dot_products() {
        outputs.push(neon::Neon::<true>(()).call(work));
    }
    outputs
}
