//! NEON.

use std::arch::aarch64::*;
use std::arch::asm;

use half::{bf16, f16};

use super::{Bytes, Inputs, LANES, Nibbles, Simd, Words, Work};

/// What a closure makes of the number of each quarter of a vector; inlined, which it otherwise need not be.
macro_rules! quarters {
    (|$i:ident| $quarter:expr) => {
        quarters(
            #[inline(always)]
            |$i| $quarter,
        )
    };
}

/// NEON, and its dot products if so said. Made only where the machine has them.
#[derive(Clone, Copy)]
pub(in super::super) struct Neon<const DOT: bool>(pub(super) ());

impl<const DOT: bool> Simd for Neon<DOT> {
    type Vector = [float32x4_t; 4];
    type Ints = [int32x4_t; 4];
    /// The 32 registers hold eight vectors, as many as AVX2's: 2 × 4 sums would take them all.
    const WIDE: bool = false;

    #[inline(always)]
    fn call<W: Work>(self, work: W) -> W::Output {
        #[inline(never)]
        #[target_feature(enable = "dotprod")]
        fn dot_products<W: Work>(work: W) -> W::Output {
            work.run(Neon::<true>(()))
        }
        // Code for this architecture is compiled for NEON as it is.
        #[inline(never)]
        fn neon<W: Work>(work: W) -> W::Output {
            work.run(Neon::<false>(()))
        }
        // SAFETY: `self` proves dot products where it says so.
        if DOT { unsafe { dot_products(work) } } else { neon(work) }
    }
    #[inline(always)]
    fn zero(self) -> Self::Vector {
        self.splat(0.0)
    }
    #[inline(always)]
    fn splat(self, value: f32) -> Self::Vector {
        // SAFETY: `self` proves NEON.
        unsafe { [vdupq_n_f32(value); 4] }
    }
    #[inline(always)]
    fn load(self, values: &[f32; LANES]) -> Self::Vector {
        let p = values.as_ptr();
        // SAFETY: `self` proves NEON; the quarters lie in the 16 elements.
        quarters!(|i| unsafe { vld1q_f32(p.add(4 * i)) })
    }
    #[inline(always)]
    fn load_f16(self, values: &[f16; LANES]) -> Self::Vector {
        let p = values.as_ptr().cast::<u16>();
        // SAFETY: `self` proves NEON, which converts from f16 without extensions; the quarters lie in the 32 bytes.
        quarters!(|i| unsafe { vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p.add(4 * i)))) })
    }
    #[inline(always)]
    fn load_bf16(self, values: &[bf16; LANES]) -> Self::Vector {
        let p = values.as_ptr().cast::<u16>();
        // SAFETY: `self` proves NEON; the quarters lie in the 32 bytes.
        quarters!(|i| unsafe { vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(p.add(4 * i)))) })
    }
    #[inline(always)]
    fn store(self, vector: Self::Vector, values: &mut [f32; LANES]) {
        let p = values.as_mut_ptr();
        // SAFETY: `self` proves NEON; the quarters lie in the 16 elements.
        quarters!(|i| unsafe { vst1q_f32(p.add(4 * i), vector[i]) });
    }
    #[inline(always)]
    fn mul(self, a: Self::Vector, b: Self::Vector) -> Self::Vector {
        // SAFETY: `self` proves NEON.
        quarters!(|i| unsafe { vmulq_f32(a[i], b[i]) })
    }
    #[inline(always)]
    fn fma(self, a: Self::Vector, b: Self::Vector, c: Self::Vector) -> Self::Vector {
        // SAFETY: `self` proves NEON.
        quarters!(|i| unsafe { vfmaq_f32(c[i], a[i], b[i]) })
    }
    #[inline(always)]
    fn mul_add(self, a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }
    #[inline(always)]
    fn prefetch<T>(self, address: *const T) {
        // Rust's own function for it is not stable.
        // SAFETY: a prefetch reads nothing and does not fault, whatever the address.
        unsafe {
            asm!("prfm pldl2keep, [{}]", in(reg) address.addr(), options(nomem, nostack, preserves_flags))
        }
    }
    #[inline(always)]
    fn sum(self, [a, b, c, d]: Self::Vector) -> f32 {
        // SAFETY: `self` proves NEON.
        unsafe {
            let four = vaddq_f32(vaddq_f32(a, c), vaddq_f32(b, d));
            vpadds_f32(vadd_f32(vget_low_f32(four), vget_high_f32(four)))
        }
    }

    #[inline(always)]
    fn ints(self, value: i32) -> Self::Ints {
        // SAFETY: `self` proves NEON.
        unsafe { [vdupq_n_s32(value); 4] }
    }
    #[inline(always)]
    fn floats(self, ints: Self::Ints) -> Self::Vector {
        // SAFETY: `self` proves NEON.
        quarters!(|i| unsafe { vcvtq_f32_s32(ints[i]) })
    }
    #[inline(always)]
    fn load_u8(self, values: &[u8; LANES]) -> Self::Vector {
        // SAFETY: `self` proves NEON; the 16 bytes are one unaligned vector.
        unsafe {
            let bytes = vld1q_u8(values.as_ptr());
            let (a, b) = (vmovl_u8(vget_low_u8(bytes)), vmovl_high_u8(bytes));
            let (c, d) = (vmovl_u16(vget_low_u16(b)), vmovl_high_u16(b));
            let (a, b) = (vmovl_u16(vget_low_u16(a)), vmovl_high_u16(a));
            [vcvtq_f32_u32(a), vcvtq_f32_u32(b), vcvtq_f32_u32(c), vcvtq_f32_u32(d)]
        }
    }
    #[inline(always)]
    fn load_i8(self, values: &[i8; LANES]) -> Self::Vector {
        // SAFETY: `self` proves NEON; the 16 bytes are one unaligned vector.
        unsafe {
            let bytes = vld1q_s8(values.as_ptr());
            let (a, b) = (vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes));
            let (c, d) = (vmovl_s16(vget_low_s16(b)), vmovl_high_s16(b));
            self.floats([vmovl_s16(vget_low_s16(a)), vmovl_high_s16(a), c, d])
        }
    }
    #[inline(always)]
    fn nibbles(self, words: &Words, shift: u32) -> Self::Vector {
        let codes = nibbles(words, shift);
        // SAFETY: `self` proves NEON.
        quarters!(|i| unsafe { vcvtq_f32_u32(codes[i]) })
    }
    #[inline(always)]
    fn bytes(self, words: &Words, shift: u32) -> Self::Vector {
        let words = load(words);
        // SAFETY: `self` proves NEON.
        self.floats(quarters!(|i| unsafe {
            let left = vshlq_s32(vreinterpretq_s32_s8(words[i]), vdupq_n_s32(24 - shift as i32));
            vshrq_n_s32::<24>(left)
        }))
    }
    /// An element's four bytes are looked up one by one, in a table of 64.
    #[inline(always)]
    fn lookup(self, table: &[f32; 16], words: &Words, shift: u32) -> Self::Vector {
        let (table, codes) = (self.load(table), nibbles(words, shift));
        // SAFETY: `self` proves NEON.
        unsafe {
            let [a, b, c, d] = quarters!(|i| vreinterpretq_u8_f32(table[i]));
            let first = vdupq_n_u32(u32::from_le_bytes([0, 1, 2, 3]));
            quarters!(|i| {
                let bytes = vmlaq_u32(first, codes[i], vdupq_n_u32(u32::from_le_bytes([4; 4])));
                vreinterpretq_f32_u8(vqtbl4q_u8(uint8x16x4_t(a, b, c, d), vreinterpretq_u8_u32(bytes)))
            })
        }
    }

    /// Without dot products: a product is at most 15 · 127, so that eight of them fit 16 bits.
    #[inline(always)]
    fn dots_4<const N: usize>(
        self,
        codes: &Nibbles,
        x: [&Inputs; N],
        sums: [Self::Ints; N],
    ) -> [Self::Ints; N] {
        dots::<DOT, 4, N>(
            #[inline(always)]
            |v| {
                let words = load(&codes[v]);
                // SAFETY: `self` proves NEON.
                unsafe {
                    let low = quarters!(|i| vandq_s8(words[i], vdupq_n_s8(15)));
                    let high = quarters!(|i| vshrq_n_u8::<4>(vreinterpretq_u8_s8(words[i])));
                    [low, quarters!(|i| vreinterpretq_s8_u8(high[i]))]
                }
            },
            x,
            sums,
        )
    }

    /// Both operands are signed, so that codes stay what they are. Without dot products: a product is at most 128 · 127, so
    /// that two of them fit 16 bits.
    #[inline(always)]
    fn dots_8<const N: usize>(
        self,
        codes: &Bytes,
        x: [&Inputs; N],
        sums: [Self::Ints; N],
    ) -> [Self::Ints; N] {
        dots::<DOT, 1, N>(
            #[inline(always)]
            |v| [load(&codes[v]), load(&codes[v + 4])],
            x,
            sums,
        )
    }
}

#[inline(always)]
fn quarters<T>(quarter: impl Fn(usize) -> T) -> [T; 4] {
    [quarter(0), quarter(1), quarter(2), quarter(3)]
}

#[inline(always)]
fn load(words: &Words) -> [int8x16_t; 4] {
    let p = words.as_ptr().cast::<i8>();
    // SAFETY: callers hold a proof of NEON; the unaligned quarters lie in the 64 bytes.
    quarters!(|i| unsafe { vld1q_s8(p.add(16 * i)) })
}

#[inline(always)]
fn nibbles(words: &Words, shift: u32) -> [uint32x4_t; 4] {
    let words = load(words);
    // SAFETY: callers hold a proof of NEON.
    quarters!(|i| unsafe {
        let right = vshlq_u32(vreinterpretq_u32_s8(words[i]), vdupq_n_s32(-(shift as i32)));
        vandq_u32(right, vdupq_n_u32(15))
    })
}

/// Adds the products of a block. `codes(v)` are those of the four columns from 4v on, and of the four from 16 + 4v on;
/// a row's products with a low and a high column of each of `FIT` such v fit 16 bits together.
#[inline(always)]
fn dots<const DOT: bool, const FIT: usize, const N: usize>(
    codes: impl Fn(usize) -> [[int8x16_t; 4]; 2],
    x: [&Inputs; N],
    mut sums: [[int32x4_t; 4]; N],
) -> [[int32x4_t; 4]; N] {
    if DOT {
        let x = inputs(x);
        lane::<0, N>(codes(0), &x, &mut sums);
        lane::<1, N>(codes(1), &x, &mut sums);
        lane::<2, N>(codes(2), &x, &mut sums);
        lane::<3, N>(codes(3), &x, &mut sums);
    } else {
        for half in 0..2 {
            widening::<FIT, N>(&codes, x, half, &mut sums);
        }
    }
    sums
}

/// The inputs of a block's low and of its high columns: four lanes of four.
#[inline(always)]
fn inputs<const N: usize>(x: [&Inputs; N]) -> [[int8x16_t; 2]; N] {
    // SAFETY: callers hold a proof of NEON; both unaligned halves lie in the 32 bytes.
    unsafe {
        let mut inputs = [[vdupq_n_s8(0); 2]; N];
        for n in 0..N {
            let p = x[n].as_ptr().cast();
            inputs[n] = [vld1q_s8(p), vld1q_s8(p.add(16))];
        }
        inputs
    }
}

/// Adds the products of low and high columns with lane `V` of their inputs.
#[inline(always)]
fn lane<const V: usize, const N: usize>(
    codes: [[int8x16_t; 4]; 2],
    x: &[[int8x16_t; 2]; N],
    sums: &mut [[int32x4_t; 4]; N],
) {
    for (side, codes) in codes.into_iter().enumerate() {
        for n in 0..N {
            // SAFETY: callers hold a proof of dot products.
            sums[n] = quarters!(|i| unsafe { dot::<V>(sums[n][i], codes[i], x[n][side]) });
        }
    }
}

/// Adds the products of each row's four codes with lane `V` of the inputs. Rust's own function for it is not stable. Not
/// said to be pure, because then the compiler would take these in an order that needs more registers than there are.
#[target_feature(enable = "dotprod")]
#[inline]
fn dot<const V: usize>(mut sums: int32x4_t, codes: int8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: whoever calls this has the instruction, which touches nothing but these registers.
    unsafe {
        asm!(
            "sdot {sums:v}.4s, {codes:v}.16b, {x:v}.4b[{V}]",
            sums = inout(vreg) sums,
            codes = in(vreg) codes,
            x = in(vreg) x,
            V = const V,
            options(nomem, nostack, preserves_flags),
        );
    }
    sums
}

/// Adds the products of half of the rows, for which there are registers enough, by multiplications that widen.
#[inline(always)]
fn widening<const FIT: usize, const N: usize>(
    codes: &impl Fn(usize) -> [[int8x16_t; 4]; 2],
    x: [&Inputs; N],
    half: usize,
    sums: &mut [[int32x4_t; 4]; N],
) {
    // SAFETY: callers hold a proof of NEON.
    unsafe {
        // A vector of either has two rows.
        let mut words = [[vdupq_n_s32(0); 4]; N];
        for first in (0..4).step_by(FIT) {
            let mut products = [[vdupq_n_s16(0); 4]; N];
            for v in first..first + FIT {
                for (side, codes) in codes(v).into_iter().enumerate() {
                    let [a, b] = [codes[2 * half], codes[2 * half + 1]];
                    for n in 0..N {
                        let (x, sums) = (broadcast(x[n][v + 4 * side]), &mut products[n]);
                        sums[0] = vmlal_s8(sums[0], vget_low_s8(a), vget_low_s8(x));
                        sums[1] = vmlal_high_s8(sums[1], a, x);
                        sums[2] = vmlal_s8(sums[2], vget_low_s8(b), vget_low_s8(x));
                        sums[3] = vmlal_high_s8(sums[3], b, x);
                    }
                }
            }
            for n in 0..N {
                words[n] = quarters!(|i| vpadalq_s16(words[n][i], products[n][i]));
            }
        }
        for (sums, [a, b, c, d]) in sums.iter_mut().zip(words) {
            sums[2 * half] = vaddq_s32(sums[2 * half], vpaddq_s32(a, b));
            sums[2 * half + 1] = vaddq_s32(sums[2 * half + 1], vpaddq_s32(c, d));
        }
    }
}

#[inline(always)]
fn broadcast(x: [i8; 4]) -> int8x16_t {
    // SAFETY: callers hold a proof of NEON.
    unsafe { vreinterpretq_s8_s32(vdupq_n_s32(i32::from_le_bytes(x.map(|x| x as u8)))) }
}
