//! Vectors of 16 lanes, in the instruction sets that a machine may have, and the choice among them.

use half::{bf16, f16};

/// Lanes of every sum.
pub(super) const LANES: usize = 16;

/// An instruction set. A value of an implementing type is a proof that the machine has it.
pub(super) trait Simd: Copy + Send + Sync {
    /// 16 lanes of f32.
    type Vector: Copy;
    /// Whether there are registers for tiles of 2 × 4 sums (else 2 × 2).
    const WIDE: bool;

    fn zero(self) -> Self::Vector;
    fn splat(self, value: f32) -> Self::Vector;
    fn load(self, values: &[f32; LANES]) -> Self::Vector;
    fn load_f16(self, values: &[f16; LANES]) -> Self::Vector;
    fn load_bf16(self, values: &[bf16; LANES]) -> Self::Vector;
    fn store(self, vector: Self::Vector, values: &mut [f32; LANES]);
    /// a · b + c, lane by lane; rounded once where the instruction set can.
    fn fma(self, a: Self::Vector, b: Self::Vector, c: Self::Vector) -> Self::Vector;
    /// a · b + c, rounded as [`Self::fma`] rounds.
    fn mul_add(self, a: f32, b: f32, c: f32) -> f32;

    /// Asks for the memory around an address, which need not be valid, to be fetched.
    fn prefetch<T>(self, address: *const T);
    /// The sum of the lanes in a fixed tree: the upper half is added to the lower, until one is left.
    fn sum(self, vector: Self::Vector) -> f32;
}

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

/// Without any extension: what the compiler makes of plain loops.
#[derive(Clone, Copy)]
struct Portable;

impl Simd for Portable {
    type Vector = [f32; LANES];
    const WIDE: bool = false;

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
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{LANES, Simd, bf16, f16};

    /// AVX2, FMA and F16C. Made only where the machine has them.
    #[derive(Clone, Copy)]
    pub struct Avx2(pub(super) ());

    /// AVX-512F besides. Made only where the machine has it.
    #[derive(Clone, Copy)]
    pub struct Avx512(pub(super) ());

    impl Simd for Avx2 {
        type Vector = [__m256; 2];
        const WIDE: bool = false;

        #[inline(always)]
        fn zero(self) -> Self::Vector {
            self.splat(0.0)
        }
        #[inline(always)]
        fn splat(self, value: f32) -> Self::Vector {
            // SAFETY: `self` proves AVX2.
            unsafe { [_mm256_set1_ps(value); 2] }
        }
        #[inline(always)]
        fn load(self, values: &[f32; LANES]) -> Self::Vector {
            let p = values.as_ptr();
            // SAFETY: `self` proves AVX2; both halves lie in the 16 elements.
            unsafe { [_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))] }
        }
        #[inline(always)]
        fn load_f16(self, values: &[f16; LANES]) -> Self::Vector {
            let p = values.as_ptr().cast::<__m128i>();
            // SAFETY: `self` proves F16C; both unaligned halves lie in the 32 bytes.
            unsafe { [_mm256_cvtph_ps(_mm_loadu_si128(p)), _mm256_cvtph_ps(_mm_loadu_si128(p.add(1)))] }
        }
        #[inline(always)]
        fn load_bf16(self, values: &[bf16; LANES]) -> Self::Vector {
            let p = values.as_ptr().cast::<__m128i>();
            // SAFETY: `self` proves AVX2; both unaligned halves lie in the 32 bytes.
            unsafe {
                let low = _mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(p)));
                let high = _mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(p.add(1))));
                [_mm256_castsi256_ps(low), _mm256_castsi256_ps(high)]
            }
        }
        #[inline(always)]
        fn store(self, vector: Self::Vector, values: &mut [f32; LANES]) {
            let p = values.as_mut_ptr();
            // SAFETY: `self` proves AVX2; both halves lie in the 16 elements.
            unsafe {
                _mm256_storeu_ps(p, vector[0]);
                _mm256_storeu_ps(p.add(8), vector[1]);
            }
        }
        #[inline(always)]
        fn fma(self, a: Self::Vector, b: Self::Vector, c: Self::Vector) -> Self::Vector {
            // SAFETY: `self` proves FMA.
            unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
        }
        #[inline(always)]
        fn mul_add(self, a: f32, b: f32, c: f32) -> f32 {
            a.mul_add(b, c)
        }
        #[inline(always)]
        fn prefetch<T>(self, address: *const T) {
            // SAFETY: a prefetch reads nothing and does not fault, whatever the address.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
        }
        #[inline(always)]
        fn sum(self, [low, high]: Self::Vector) -> f32 {
            // SAFETY: `self` proves AVX2.
            unsafe {
                let eight = _mm256_add_ps(low, high);
                let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
                let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
                _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
            }
        }
    }

    impl Simd for Avx512 {
        type Vector = __m512;
        const WIDE: bool = true;

        #[inline(always)]
        fn zero(self) -> Self::Vector {
            self.splat(0.0)
        }
        #[inline(always)]
        fn splat(self, value: f32) -> Self::Vector {
            // SAFETY: `self` proves AVX-512F.
            unsafe { _mm512_set1_ps(value) }
        }
        #[inline(always)]
        fn load(self, values: &[f32; LANES]) -> Self::Vector {
            // SAFETY: `self` proves AVX-512F; the 16 elements are one unaligned vector.
            unsafe { _mm512_loadu_ps(values.as_ptr()) }
        }
        #[inline(always)]
        fn load_f16(self, values: &[f16; LANES]) -> Self::Vector {
            // SAFETY: `self` proves AVX-512F; the 32 bytes are one unaligned vector.
            unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(values.as_ptr().cast())) }
        }
        #[inline(always)]
        fn load_bf16(self, values: &[bf16; LANES]) -> Self::Vector {
            // SAFETY: `self` proves AVX-512F; the 32 bytes are one unaligned vector.
            unsafe {
                let words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(values.as_ptr().cast()));
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(words))
            }
        }
        #[inline(always)]
        fn store(self, vector: Self::Vector, values: &mut [f32; LANES]) {
            // SAFETY: `self` proves AVX-512F; the 16 elements are one unaligned vector.
            unsafe { _mm512_storeu_ps(values.as_mut_ptr(), vector) }
        }
        #[inline(always)]
        fn fma(self, a: Self::Vector, b: Self::Vector, c: Self::Vector) -> Self::Vector {
            // SAFETY: `self` proves AVX-512F.
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        fn mul_add(self, a: f32, b: f32, c: f32) -> f32 {
            a.mul_add(b, c)
        }
        #[inline(always)]
        fn prefetch<T>(self, address: *const T) {
            Avx2(()).prefetch(address);
        }
        #[inline(always)]
        fn sum(self, vector: Self::Vector) -> f32 {
            // SAFETY: `self` proves AVX-512F; the cast only renames the bits.
            let halves = unsafe {
                let high = _mm512_extractf64x4_pd::<1>(_mm512_castps_pd(vector));
                [_mm512_castps512_ps256(vector), _mm256_castpd_ps(high)]
            };
            Avx2(()).sum(halves)
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
}

#[cfg(target_arch = "x86_64")]
fn has_avx512() -> bool {
    has_avx2() && is_x86_feature_detected!("avx512f")
}

/// Runs `work` with the best instruction set of the machine.
pub(super) fn run<W: Work>(work: W) -> W::Output {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2,fma,f16c,avx512f")]
        fn avx512<W: Work>(work: W) -> W::Output {
            work.run(x86::Avx512(()))
        }
        #[target_feature(enable = "avx2,fma,f16c")]
        fn avx2<W: Work>(work: W) -> W::Output {
            work.run(x86::Avx2(()))
        }
        if has_avx512() {
            // SAFETY: the machine has these features.
            return unsafe { avx512(work) };
        }
        if has_avx2() {
            // SAFETY: the machine has these features.
            return unsafe { avx2(work) };
        }
    }
    work.run(Portable)
}

/// The name of the instruction set that the fast kernels use.
pub fn instruction_set() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        if has_avx512() {
            return "AVX-512";
        }
        if has_avx2() {
            return "AVX2";
        }
    }
    "portable"
}

/// Runs `work` with every instruction set of the machine.
#[cfg(test)]
pub(super) fn run_all<W: Work + Copy>(work: W) -> Vec<W::Output> {
    let mut outputs = vec![work.run(Portable)];
    #[cfg(target_arch = "x86_64")]
    if has_avx2() {
        outputs.push(work.run(x86::Avx2(())));
    }
    #[cfg(target_arch = "x86_64")]
    if has_avx512() {
        outputs.push(work.run(x86::Avx512(())));
    }
    outputs
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sums and conversions.
    #[derive(Clone, Copy)]
    struct Check;

    impl Work for Check {
        type Output = ();

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) {
            let numbers: [f32; LANES] = std::array::from_fn(|i| i as f32 - 3.5);
            // Each addition rounds: only the documented order gives this sum.
            let uneven = numbers.map(|x| x / 3.0);
            assert_eq!(simd.sum(simd.load(&uneven)).to_bits(), Portable.sum(uneven).to_bits());
            let ones = simd.splat(1.0);
            for vector in [
                simd.load(&numbers),
                simd.load_f16(&numbers.map(f16::from_f32)),
                simd.load_bf16(&numbers.map(bf16::from_f32)),
            ] {
                assert_eq!(simd.sum(simd.fma(vector, ones, ones)), 120.0 - 16.0 * 2.5);
                let mut stored = [0.0; LANES];
                simd.store(vector, &mut stored);
                assert_eq!(stored, numbers);
            }
            assert_eq!((simd.sum(simd.zero()), simd.mul_add(2.0, 3.0, 4.0)), (0.0, 10.0));
        }
    }

    #[test]
    fn every_instruction_set_computes_the_same() {
        run_all(Check);
    }
}
