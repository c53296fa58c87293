//! Instruction sets against each other.

use super::*;
use crate::panels::{BLOCK, NF4};

fn lanes<S: Simd>(simd: S, vector: S::Vector) -> [f32; LANES] {
    let mut lanes = [0.0; LANES];
    simd.store(vector, &mut lanes);
    lanes
}

/// Sums and conversions.
#[derive(Clone, Copy)]
struct Check;

impl Work for Check {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let numbers: [f32; LANES] = std::array::from_fn(|i| i as f32 - 3.5);
        // Each addition rounds: no other order that one might think of gives this sum.
        let uneven = std::array::from_fn(|i| ((i * 37 + 11) % 101) as f32 / 11.0);
        assert_eq!(simd.sum(simd.load(&uneven)).to_bits(), Portable.sum(uneven).to_bits());
        let ones = simd.splat(1.0);
        for vector in [
            simd.load(&numbers),
            simd.load_f16(&numbers.map(f16::from_f32)),
            simd.load_bf16(&numbers.map(bf16::from_f32)),
            simd.fma(simd.load_i8(&numbers.map(|x| (2.0 * x) as i8)), simd.splat(0.5), simd.zero()),
        ] {
            assert_eq!(simd.sum(simd.fma(vector, ones, ones)), 120.0 - 16.0 * 2.5);
            assert_eq!(lanes(simd, vector), numbers);
        }
        assert_eq!((simd.sum(simd.zero()), simd.mul_add(2.0, 3.0, 4.0)), (0.0, 10.0));
    }
}

/// Codes of inputs, and their sum.
#[derive(Clone, Copy)]
struct Rounding<'a>(&'a [f32; BLOCK], f32);

impl Work for Rounding<'_> {
    type Output = (Inputs, i32);

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Self::Output {
        let mut codes = Inputs::default();
        let sum = simd.round(self.0, self.1, &mut codes);
        (codes, sum)
    }
}

#[test]
fn all_sets_make_the_same_codes() {
    // Halves, which go to the even one; sizes beyond the codes'; what has no finite inverse.
    for (step, inverse) in [(0.5, 1.0), (11.0, 1.3), (1e-44, f32::INFINITY), (1.0, 0.0)] {
        let x: [f32; BLOCK] = std::array::from_fn(|i| (i as f32 - 15.0) * step);
        for (set, (codes, sum)) in run_all(Rounding(&x, inverse)).into_iter().enumerate() {
            let codes = codes.as_flattened();
            assert_eq!(sum, codes.iter().map(|&code| i32::from(code)).sum::<i32>(), "set {set}");
            for (&code, x) in codes.iter().zip(x).filter(|_| inverse.is_finite()) {
                let nearest = (x * inverse).round_ties_even().clamp(-127.0, 127.0);
                assert_eq!(f32::from(code), nearest, "set {set}: {x} times {inverse}");
            }
        }
        let all = run_all(Rounding(&x, inverse));
        assert!(all.iter().all(|codes| *codes == all[0]), "{step} times {inverse}: {all:?}");
    }
}

/// a² − 1 − 2⁻¹¹ for a = 1 + 2⁻¹²: 2⁻²⁴ if that is rounded once, 0 if twice.
#[derive(Clone, Copy)]
struct Square;

impl Work for Square {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        let (a, b) = (1.0 + 2.0_f32.powi(-12), -1.0 - 2.0_f32.powi(-11));
        let square = simd.mul_add(a, a, b);
        assert_eq!(lanes(simd, simd.fma(simd.splat(a), simd.splat(a), simd.splat(b))), [square; LANES]);
        square
    }
}

/// What codes mean, and products at the ends of their ranges.
#[derive(Clone, Copy)]
struct Codes;

impl Work for Codes {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let words: Words = std::array::from_fn(|i| (i * 37 + 11) as u8);
        for shift in (0..32).step_by(4) {
            assert_eq!(lanes(simd, simd.nibbles(&words, shift)), Portable.nibbles(&words, shift));
            assert_eq!(lanes(simd, simd.lookup(&NF4, &words, shift)), Portable.lookup(&NF4, &words, shift));
        }
        for shift in (0..32).step_by(8) {
            assert_eq!(lanes(simd, simd.bytes(&words, shift)), Portable.bytes(&words, shift));
        }
        for bytes in words.as_chunks().0 {
            assert_eq!(lanes(simd, simd.load_u8(bytes)), bytes.map(f32::from));
        }
        let above = if S::ABOVE { 128 } else { 0 };
        for (code, x) in [0, 0x7f, 0x80, 0xff].into_iter().flat_map(|code| [(code, -127), (code, 127)]) {
            let (inputs, x) = ([[x; 4]; BLOCK / 4], i32::from(x));
            let start = [simd.ints(7 - above * 32 * x)];
            let [sums] = simd.dots_8(&[[code; 4 * LANES]; 8], [&inputs], start);
            let expected = 7 + 32 * x * i32::from(code as i8);
            assert_eq!(lanes(simd, simd.floats(sums)), [expected as f32; LANES], "{code} {x}");
            let [sums] = simd.dots_4(&[[code; 4 * LANES]; 4], [&inputs], [simd.ints(7)]);
            let expected = 7 + 16 * x * i32::from(code % 16 + code / 16);
            assert_eq!(lanes(simd, simd.floats(sums)), [expected as f32; LANES], "{code} {x}");
        }
    }
}

/// All numbers of 16 bits.
#[derive(Clone, Copy)]
struct Halves;

impl Work for Halves {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for first in (0..=u16::MAX).step_by(LANES) {
            let bits: [u16; LANES] = std::array::from_fn(|i| first + i as u16);
            let (f16s, bf16s) = (bits.map(f16::from_bits), bits.map(bf16::from_bits));
            let f16_pairs = lanes(simd, simd.load_f16(&f16s)).into_iter().zip(f16s.map(f16::to_f32));
            let bf16_pairs = lanes(simd, simd.load_bf16(&bf16s)).into_iter().zip(bf16s.map(bf16::to_f32));
            for (loaded, exact) in f16_pairs.chain(bf16_pairs) {
                assert!(loaded.to_bits() == exact.to_bits() || loaded.is_nan() && exact.is_nan(), "{exact}");
            }
        }
    }
}

#[test]
fn every_instruction_set_computes_the_same() {
    run_all(Check);
}

#[test]
fn all_extensions_round_a_product_and_its_sum_once() {
    let squares = run_all(Square);
    assert!(squares[1..].iter().all(|&square| square == 2.0_f32.powi(-24)), "{squares:?}");
}

#[derive(Clone, Copy)]
struct Name;

impl Work for Name {
    type Output = &'static str;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> Self::Output {
        std::any::type_name::<S>()
    }
}

#[test]
fn the_best_of_all_is_in_use() {
    println!("{}", instruction_set());
    assert_eq!(run_all(Name).last(), Some(&run(Name)));
}

#[test]
fn codes_mean_the_same_on_every_instruction_set() {
    run_all(Codes);
}

#[test]
fn halves_are_loaded_exactly() {
    run_all(Halves);
}
