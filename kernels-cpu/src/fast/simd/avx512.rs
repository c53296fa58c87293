//! AVX-512.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::super::math::ROUND;
use super::avx2::Avx2;
use super::{Bytes, Inputs, LANES, Nibbles, Simd, Words, Work};

/// AVX-512 F and BW besides what [`Avx2`] needs, and VNNI if so said. Made only where the machine has them.
#[derive(Clone, Copy)]
pub(in super::super) struct Avx512<const VNNI: bool>(pub(super) ());

impl<const VNNI: bool> Simd for Avx512<VNNI> {
    type Vector = __m512;
    type Ints = __m512i;
    const WIDE: bool = true;
    const ABOVE: bool = VNNI;

    #[inline(always)]
    fn call<W: Work>(self, work: W) -> W::Output {
        #[inline(never)]
        #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vnni")]
        fn vnni<W: Work>(work: W) -> W::Output {
            work.run(Avx512::<true>(()))
        }
        #[inline(never)]
        #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw")]
        fn avx512<W: Work>(work: W) -> W::Output {
            work.run(Avx512::<false>(()))
        }
        // SAFETY: `self` proves these features.
        unsafe { if VNNI { vnni(work) } else { avx512(work) } }
    }
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
    fn mul(self, a: Self::Vector, b: Self::Vector) -> Self::Vector {
        // SAFETY: `self` proves AVX-512F.
        unsafe { _mm512_mul_ps(a, b) }
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

    /// The codes go where they belong at once: what is gathered in memory first cannot be loaded while it is on its way.
    #[inline(always)]
    fn round(self, x: &[f32; 2 * LANES], inverse: f32, codes: &mut Inputs) -> i32 {
        let (halves, to) = (x.as_chunks().0, codes.as_flattened_mut().as_chunks_mut::<LANES>().0);
        // SAFETY: `self` proves AVX-512F; 16 codes are one unaligned vector of bytes.
        unsafe {
            let (inverse, above) = (_mm512_set1_ps(inverse), _mm512_set1_ps(ROUND));
            let mut sums = _mm512_setzero_si512();
            for (x, to) in halves.iter().zip(to) {
                let bits = _mm512_castps_si512(_mm512_add_ps(_mm512_mul_ps(self.load(x), inverse), above));
                let ints = _mm512_sub_epi32(bits, _mm512_castps_si512(above));
                let least = _mm512_max_epi32(ints, _mm512_set1_epi32(-127));
                let ints = _mm512_min_epi32(least, _mm512_set1_epi32(127));
                _mm_storeu_si128(to.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(ints));
                sums = _mm512_add_epi32(sums, ints);
            }
            _mm512_reduce_add_epi32(sums)
        }
    }

    #[inline(always)]
    fn ints(self, value: i32) -> Self::Ints {
        // SAFETY: `self` proves AVX-512F.
        unsafe { _mm512_set1_epi32(value) }
    }
    #[inline(always)]
    fn floats(self, ints: Self::Ints) -> Self::Vector {
        // SAFETY: `self` proves AVX-512F.
        unsafe { _mm512_cvtepi32_ps(ints) }
    }
    #[inline(always)]
    fn load_u8(self, values: &[u8; LANES]) -> Self::Vector {
        // SAFETY: `self` proves AVX-512F; the 16 bytes are one unaligned vector.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(values.as_ptr().cast()))) }
    }
    #[inline(always)]
    fn load_i8(self, values: &[i8; LANES]) -> Self::Vector {
        // SAFETY: `self` proves AVX-512F; the 16 bytes are one unaligned vector.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(values.as_ptr().cast()))) }
    }
    #[inline(always)]
    fn nibbles(self, words: &Words, shift: u32) -> Self::Vector {
        // SAFETY: `self` proves AVX-512F.
        unsafe { _mm512_cvtepi32_ps(nibbles(words, shift)) }
    }
    #[inline(always)]
    fn bytes(self, words: &Words, shift: u32) -> Self::Vector {
        // SAFETY: `self` proves AVX-512F.
        unsafe {
            let left = _mm512_sllv_epi32(load(words), _mm512_set1_epi32(24 - shift as i32));
            _mm512_cvtepi32_ps(_mm512_srai_epi32::<24>(left))
        }
    }
    #[inline(always)]
    fn lookup(self, table: &[f32; 16], words: &Words, shift: u32) -> Self::Vector {
        // SAFETY: `self` proves AVX-512F.
        unsafe { _mm512_permutexvar_ps(nibbles(words, shift), self.load(table)) }
    }

    /// Without VNNI: each pair of products is at most 2 · 15 · 127, so that eight of them fit 16 bits.
    #[inline(always)]
    fn dots_4<const N: usize>(
        self,
        codes: &Nibbles,
        x: [&Inputs; N],
        mut sums: [Self::Ints; N],
    ) -> [Self::Ints; N] {
        // SAFETY: `self` proves AVX-512BW, and VNNI if it says so.
        unsafe {
            let low_bits = _mm512_set1_epi8(15);
            let mut pairs = [_mm512_setzero_si512(); N];
            for (v, words) in codes.iter().enumerate() {
                let words = load(words);
                let low = _mm512_and_si512(words, low_bits);
                let high = _mm512_and_si512(_mm512_srli_epi16::<4>(words), low_bits);
                for n in 0..N {
                    let (x_low, x_high) = (broadcast(x[n][v]), broadcast(x[n][v + 4]));
                    if VNNI {
                        sums[n] = _mm512_dpbusd_epi32(sums[n], low, x_low);
                        pairs[n] = _mm512_dpbusd_epi32(pairs[n], high, x_high);
                    } else {
                        let products = _mm512_maddubs_epi16(low, x_low);
                        pairs[n] = _mm512_add_epi16(pairs[n], products);
                        pairs[n] = _mm512_add_epi16(pairs[n], _mm512_maddubs_epi16(high, x_high));
                    }
                }
            }
            for (sum, pairs) in sums.iter_mut().zip(pairs) {
                let words = if VNNI { pairs } else { _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)) };
                *sum = _mm512_add_epi32(*sum, words);
            }
        }
        sums
    }

    /// The instructions want one operand unsigned. With VNNI that is 128 more than the code; without, where such pairs of
    /// products would not fit 16 bits, the code's size, and its sign goes to the input: at most 2 · 128 · 127.
    #[inline(always)]
    fn dots_8<const N: usize>(
        self,
        codes: &Bytes,
        x: [&Inputs; N],
        mut sums: [Self::Ints; N],
    ) -> [Self::Ints; N] {
        // SAFETY: `self` proves AVX-512BW, and VNNI if it says so.
        unsafe {
            for (v, words) in codes.iter().enumerate() {
                let words = load(words);
                let above = _mm512_xor_si512(words, _mm512_set1_epi8(i8::MIN));
                let (size, negative) = (_mm512_abs_epi8(words), _mm512_movepi8_mask(words));
                for n in 0..N {
                    let x = broadcast(x[n][v]);
                    sums[n] = if VNNI {
                        _mm512_dpbusd_epi32(sums[n], above, x)
                    } else {
                        let x = _mm512_mask_sub_epi8(x, negative, _mm512_setzero_si512(), x);
                        let pairs = _mm512_maddubs_epi16(size, x);
                        _mm512_add_epi32(sums[n], _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)))
                    };
                }
            }
        }
        sums
    }
}

#[inline(always)]
fn load(words: &Words) -> __m512i {
    // SAFETY: callers hold a proof of AVX-512F; the 64 bytes are one unaligned vector.
    unsafe { _mm512_loadu_si512(words.as_ptr().cast()) }
}

#[inline(always)]
fn broadcast(x: [i8; 4]) -> __m512i {
    // SAFETY: callers hold a proof of AVX-512F.
    unsafe { _mm512_set1_epi32(i32::from_le_bytes(x.map(|x| x as u8))) }
}

#[inline(always)]
fn nibbles(words: &Words, shift: u32) -> __m512i {
    // SAFETY: callers hold a proof of AVX-512F.
    unsafe {
        let right = _mm512_srlv_epi32(load(words), _mm512_set1_epi32(shift as i32));
        _mm512_and_si512(right, _mm512_set1_epi32(15))
    }
}
