//! Functions of one f32 that compilers can vectorize: no branches, no tables, no calls.

use super::simd::Simd;
use crate::activate::Function;

/// Adding 1.5 · 2^23 rounds to an integer, which is then in the low bits; subtracting it gives the integer.
pub(super) const ROUND: f32 = 12_582_912.0;

/// Multiply-adds that an exponential is worth.
pub(super) const EXPONENTIAL: usize = 8;

/// e^x within 2 ulp for x in \[-87, 88\]; beyond, the value at the border.
///
/// x = n ln 2 + r with |r| ≤ ln 2 / 2; e^r is its Taylor polynomial of degree 7 (error 5e-9), and 2^n is made from bits.
#[inline(always)]
pub(super) fn exp<S: Simd>(simd: S, x: f32) -> f32 {
    /// ln 2 in two parts, the first with zeros at its end, so that n times it is exact.
    const LN_2: [f32; 2] = [355.0 / 512.0, -2.121_944_4e-4];
    let x = x.clamp(-87.0, 88.0);
    let shifted = simd.mul_add(x, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = simd.mul_add(n, -LN_2[1], simd.mul_add(n, -LN_2[0], x));
    let mut power = 1.0 / 5040.0;
    for factor in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        power = simd.mul_add(power, r, factor);
    }
    let biased = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127);
    power * f32::from_bits(biased << 23)
}

/// The activation functions, see [`Function`].
#[inline(always)]
pub(super) fn activate<S: Simd>(simd: S, function: Function, values: &mut [f32]) {
    let sigmoid = |x: f32| 1.0 / (1.0 + exp(simd, -x));
    match function {
        Function::Gelu => {
            for x in values {
                *x = *x / 2.0 * (1.0 + libm::erff(*x * std::f32::consts::FRAC_1_SQRT_2));
            }
        }
        Function::GeluTanh => {
            // (1 + tanh u) / 2 is sigmoid(2 u).
            let twice = 2.0 * (2.0 / std::f32::consts::PI).sqrt();
            for x in values {
                *x *= sigmoid(twice * simd.mul_add(0.044_715 * *x * *x, *x, *x));
            }
        }
        Function::Relu => {
            for x in values {
                *x = x.max(0.0);
            }
        }
        Function::Silu => {
            for x in values {
                *x *= sigmoid(*x);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::simd::{Work, run};
    use super::*;

    struct Exp(f32);

    impl Work for Exp {
        type Output = f32;

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> f32 {
            exp(simd, self.0)
        }
    }

    #[test]
    fn exp_is_within_two_ulp() {
        let worst = (-8_700..8_800).map(|i| {
            let x = i as f32 / 100.0 + 0.003;
            let expected = f64::from(x).exp();
            (f64::from(run(Exp(x))) - expected).abs() / expected
        });
        let worst = worst.fold(0.0, f64::max);
        assert!(worst < 2.0 * f64::from(f32::EPSILON), "{worst:e}");
        assert!(run(Exp(-1e30)) < 1e-37 && run(Exp(1e30)).is_finite());
    }
}
