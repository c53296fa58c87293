//! y = f(x), or f(gate) · up.

use crate::{Read, Write};

/// The functions f.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Function {
    /// x/2 · (1 + erf(x/√2)) (Hendrycks & Gimpel 2016).
    Gelu,
    /// x/2 · (1 + tanh(√(2/π)(x + 0.044715 x³))), the same paper's approximation.
    GeluTanh,
    /// max(x, 0).
    Relu,
    /// x · sigmoid(x).
    Silu,
}

impl Function {
    /// f(x).
    pub fn apply(self, x: f64) -> f64 {
        match self {
            Self::Gelu => x / 2.0 * (1.0 + libm::erf(x / std::f64::consts::SQRT_2)),
            Self::GeluTanh => {
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
                x / 2.0 * (1.0 + inner.tanh())
            }
            Self::Relu => x.max(0.0),
            Self::Silu => x / (1.0 + (-x).exp()),
        }
    }
}

/// `len` elements each: y = f(x), times `up` if there is one.
pub fn plain(len: usize, function: Function, x: &dyn Read, up: Option<&dyn Read>, y: &mut dyn Write) {
    for i in 0..len {
        let value = function.apply(f64::from(x.get(i)));
        y.set(i, (value * up.map_or(1.0, |up| f64::from(up.get(i)))) as f32);
    }
}
