//! AVX2.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::{Bytes, Inputs, LANES, Nibbles, Simd, Words, Work};

/// AVX2, FMA and F16C. Made only where the machine has them.
#[derive(Clone, Copy)]
pub(in super::super) struct Avx2(pub(super) ());

impl Simd for Avx2 {
    type Vector = [__m256; 2];
    type Ints = [__m256i; 2];
    const WIDE: bool = false;

    #[inline(always)]
    fn call<W: Work>(self, work: W) -> W::Output {
        #[inline(never)]
        #[target_feature(enable = "avx2,fma,f16c")]
        fn avx2<W: Work>(work: W) -> W::Output {
            work.run(Avx2(()))
        }
        // SAFETY: `self` proves these features.
        unsafe { avx2(work) }
    }
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
    fn mul(self, a: Self::Vector, b: Self::Vector) -> Self::Vector {
        // SAFETY: `self` proves AVX2.
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
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
        unsafe { _mm_prefetch::<_MM_HINT_T1>(address.cast()) }
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

    #[inline(always)]
    fn ints(self, value: i32) -> Self::Ints {
        // SAFETY: `self` proves AVX2.
        unsafe { [_mm256_set1_epi32(value); 2] }
    }
    #[inline(always)]
    fn floats(self, ints: Self::Ints) -> Self::Vector {
        // SAFETY: `self` proves AVX2.
        unsafe { [_mm256_cvtepi32_ps(ints[0]), _mm256_cvtepi32_ps(ints[1])] }
    }
    #[inline(always)]
    fn load_u8(self, values: &[u8; LANES]) -> Self::Vector {
        let p = values.as_ptr();
        // SAFETY: `self` proves AVX2; both unaligned halves lie in the 16 bytes.
        unsafe {
            let low = _mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast()));
            let high = _mm256_cvtepu8_epi32(_mm_loadl_epi64(p.add(8).cast()));
            self.floats([low, high])
        }
    }
    #[inline(always)]
    fn load_i8(self, values: &[i8; LANES]) -> Self::Vector {
        let p = values.as_ptr();
        // SAFETY: `self` proves AVX2; both unaligned halves lie in the 16 bytes.
        unsafe {
            let low = _mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast()));
            let high = _mm256_cvtepi8_epi32(_mm_loadl_epi64(p.add(8).cast()));
            self.floats([low, high])
        }
    }
    #[inline(always)]
    fn nibbles(self, words: &Words, shift: u32) -> Self::Vector {
        self.floats(nibbles(words, shift))
    }
    #[inline(always)]
    fn bytes(self, words: &Words, shift: u32) -> Self::Vector {
        // SAFETY: `self` proves AVX2.
        let signed = |half| unsafe {
            let left = _mm256_sllv_epi32(half, _mm256_set1_epi32(24 - shift as i32));
            _mm256_srai_epi32::<24>(left)
        };
        let [low, high] = load(words);
        self.floats([signed(low), signed(high)])
    }
    #[inline(always)]
    fn lookup(self, table: &[f32; 16], words: &Words, shift: u32) -> Self::Vector {
        let [low, high] = self.load(table);
        // SAFETY: `self` proves AVX2. A permutation looks at three bits; the fourth, moved to the sign, chooses.
        let look = |index| unsafe {
            let choice = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(index));
            let low = _mm256_permutevar8x32_ps(low, index);
            _mm256_blendv_ps(low, _mm256_permutevar8x32_ps(high, index), choice)
        };
        let [first, second] = nibbles(words, shift);
        [look(first), look(second)]
    }

    /// Each pair of products is at most 2 · 15 · 127, so that eight of them fit 16 bits.
    #[inline(always)]
    fn dots_4<const N: usize>(
        self,
        codes: &Nibbles,
        x: [&Inputs; N],
        mut sums: [Self::Ints; N],
    ) -> [Self::Ints; N] {
        // SAFETY: `self` proves AVX2.
        unsafe {
            let low_bits = _mm256_set1_epi8(15);
            let mut pairs = [[_mm256_setzero_si256(); 2]; N];
            for (v, words) in codes.iter().enumerate() {
                for (half, words) in load(words).into_iter().enumerate() {
                    let low = _mm256_and_si256(words, low_bits);
                    let high = _mm256_and_si256(_mm256_srli_epi16::<4>(words), low_bits);
                    for n in 0..N {
                        let products = _mm256_maddubs_epi16(low, broadcast(x[n][v]));
                        pairs[n][half] = _mm256_add_epi16(pairs[n][half], products);
                        let products = _mm256_maddubs_epi16(high, broadcast(x[n][v + 4]));
                        pairs[n][half] = _mm256_add_epi16(pairs[n][half], products);
                    }
                }
            }
            for (sums, pairs) in sums.iter_mut().zip(pairs) {
                for (sum, pairs) in sums.iter_mut().zip(pairs) {
                    *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
                }
            }
        }
        sums
    }

    /// A product's sign goes from the code to the input, because the instruction wants one operand unsigned. Each
    /// pair of products is at most 2 · 128 · 127, which fits 16 bits.
    #[inline(always)]
    fn dots_8<const N: usize>(
        self,
        codes: &Bytes,
        x: [&Inputs; N],
        mut sums: [Self::Ints; N],
    ) -> [Self::Ints; N] {
        // SAFETY: `self` proves AVX2.
        unsafe {
            for (v, words) in codes.iter().enumerate() {
                for (half, words) in load(words).into_iter().enumerate() {
                    let size = _mm256_abs_epi8(words);
                    for n in 0..N {
                        let pairs = _mm256_maddubs_epi16(size, _mm256_sign_epi8(broadcast(x[n][v]), words));
                        let words = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
                        sums[n][half] = _mm256_add_epi32(sums[n][half], words);
                    }
                }
            }
        }
        sums
    }
}

#[inline(always)]
fn load(words: &Words) -> [__m256i; 2] {
    let p = words.as_ptr().cast::<__m256i>();
    // SAFETY: callers hold a proof of AVX2; both unaligned halves lie in the 64 bytes.
    unsafe { [_mm256_loadu_si256(p), _mm256_loadu_si256(p.add(1))] }
}

#[inline(always)]
fn broadcast(x: [i8; 4]) -> __m256i {
    // SAFETY: callers hold a proof of AVX2.
    unsafe { _mm256_set1_epi32(i32::from_le_bytes(x.map(|x| x as u8))) }
}

#[inline(always)]
fn nibbles(words: &Words, shift: u32) -> [__m256i; 2] {
    // SAFETY: callers hold a proof of AVX2.
    let right = |half| unsafe {
        let right = _mm256_srlv_epi32(half, _mm256_set1_epi32(shift as i32));
        _mm256_and_si256(right, _mm256_set1_epi32(15))
    };
    let [low, high] = load(words);
    [right(low), right(high)]
}
