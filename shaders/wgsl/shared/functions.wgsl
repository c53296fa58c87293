// The MLP's activations. exp's argument is bounded, so that nothing relies on infinities.

const NONE = 0u;
const GELU = 1u;
const GELU_TANH = 2u;
const RELU = 3u;
const SILU = 4u;

// Abramowitz & Stegun 7.1.26: |error| <= 1.5e-7.
fn erf(x: f32) -> f32 {
    let a = min(abs(x), 9.0);
    let t = 1.0 / fma(0.3275911, a, 1.0);
    let poly = fma(fma(fma(fma(1.061405429, t, -1.453152027), t, 1.421413741), t, -0.284496736), t, 0.254829592);
    let positive = 1.0 - poly * t * exp(-a * a);
    return select(positive, -positive, x < 0.0);
}

// x * sigmoid(u)
fn gated(x: f32, u: f32) -> f32 {
    return x / (1.0 + exp(min(-u, 88.0)));
}

fn activate(function: u32, x: f32) -> f32 {
    switch function {
        case GELU: { return 0.5 * x * (1.0 + erf(x * 0.70710678)); }
        // 1 + tanh(u) = 2 sigmoid(2 u)
        case GELU_TANH: { return gated(x, 1.5957691 * fma(0.044715 * x * x, x, x)); }
        case RELU: { return select(x, 0.0, x < 0.0); }
        case SILU: { return gated(x, x); }
        default: { return x; }
    }
}
