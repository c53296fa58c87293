//! LoRA factors as binary16.

use half::f16;

/// The largest magnitude is brought to at least 2^14, and stays below 2^15.
const EXPONENT: i32 = 14;

/// Values as binary16 times a power of two, by which the largest of them comes to lie in \[2^14, 2^15): none is too large,
/// and small ones are not lost. What rounding changes of a value is at most 2^-11 of it, or 2^-39 of the largest.
///
/// Infinities and NaN remain what they are.
pub fn halves(values: &[f32]) -> (Vec<f16>, f32) {
    let scale = scale(values);
    // Both are powers of two: nothing is rounded but by binary16.
    let inverse = 1.0 / scale;
    (values.iter().map(|value| f16::from_f32(value * inverse)).collect(), scale)
}

/// The power of two; 1 if all values are 0.
fn scale(values: &[f32]) -> f32 {
    let finite = values.iter().map(|value| value.abs()).filter(|value| value.is_finite());
    let largest = finite.fold(0.0, f32::max);
    if largest == 0.0 {
        return 1.0;
    }
    let exponent = (largest.to_bits() >> 23) as i32 - 127 - EXPONENT;
    // The least normal number's; its inverse is finite.
    f32::from_bits(((exponent + 127).max(1) as u32) << 23)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values that the halves stand for.
    fn kept(values: &[f32]) -> Vec<f64> {
        let (halves, scale) = halves(values);
        halves.iter().map(|half| half.to_f64() * f64::from(scale)).collect()
    }

    #[test]
    fn what_rounding_changes_is_bounded_whatever_the_size() {
        let numbers = (0..4096_u32).map(|i| i.wrapping_mul(2_654_435_761) as f32 / u32::MAX as f32 - 0.5);
        // Of all magnitudes below the largest, too.
        let numbers: Vec<f32> =
            numbers.enumerate().map(|(i, x)| x * 2.0_f32.powi(-(i as i32 % 50))).collect();
        for exponent in [-120, -60, -20, -1, 0, 1, 14, 15, 16, 17, 60, 120, 127] {
            let values: Vec<f32> = numbers.iter().map(|x| x * 2.0_f32.powi(exponent)).collect();
            let largest = values.iter().fold(0.0_f64, |most, x| most.max(f64::from(x.abs())));
            for (&value, kept) in values.iter().zip(kept(&values)) {
                let bound = f64::max(f64::from(value.abs()) * 2.0_f64.powi(-11), largest * 2.0_f64.powi(-39));
                assert!((kept - f64::from(value)).abs() <= bound, "2^{exponent}: {kept} for {value}");
            }
        }
    }

    #[test]
    fn what_binary16_holds_is_exact_at_any_scale() {
        let values = [65504.0, -1.0, 0.25, 2047.0 / 1024.0, 0.0];
        for exponent in [-100, -30, 0, 1, 30, 100] {
            let scaled = values.map(|x: f32| x * 2.0_f32.powi(exponent));
            assert_eq!(kept(&scaled), scaled.map(f64::from), "2^{exponent}");
        }
    }

    #[test]
    fn extremes_stay_what_they_are() {
        assert_eq!(kept(&[0.0, -0.0]), [0.0, 0.0]);
        assert_eq!(halves(&[]).1, 1.0);
        let odd = kept(&[f32::INFINITY, f32::NAN, 3.0, f32::NEG_INFINITY]);
        assert!(odd[0] == f64::INFINITY && odd[1].is_nan() && odd[2] == 3.0 && odd[3] == f64::NEG_INFINITY);
        // The last binade rounds up to 2^15 at most; below the least normal number f32 itself is coarse.
        assert_eq!(kept(&[f32::MAX]), [2.0_f64.powi(128)]);
        assert_eq!(
            kept(&[f32::MIN_POSITIVE, f32::from_bits(1 << 13)]),
            [f64::from(f32::MIN_POSITIVE), f64::from(f32::from_bits(1 << 13))]
        );
    }
}
