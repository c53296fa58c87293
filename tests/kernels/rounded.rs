//! Projections of prompts in fast precision: inputs are rounded to 8 bits before they meet quantized weights. What that
//! may change of each output follows from the inputs and the weights.

use std::sync::Arc;

use wattle_engine::model::{Activation, Matrix, NormKind, NormWeights, Offset, PanelFormat};
use wattle_engine::plan::{Extent, GateUp, Norm, OpKind, Project, TensorId};

use crate::case::{Make, Seen};
use crate::compare::Failure;
use crate::fixture::{Draft, QUANTIZED, Random, rows, step};
use crate::Case;

/// A case of one op and one output tensor, and by how much each of its elements may be off.
pub struct Rounded {
    case: Case,
    bounds: Vec<f64>,
}

/// Columns that are rounded together.
const BLOCK: usize = 32;

/// Codes are off by 1/2, and by what the arithmetic that makes them adds: 127 times a few units in the last place.
const HALF: f64 = 0.5 + 1e-4;

/// f32 sums of some hundred terms, relative to the sum of their sizes: 2^-24 per step, taken generously.
const SUMS: f64 = 1e-5;

/// W x, and by how much it may be off, for every line.
fn products(matrix: &Matrix, x: &[f32]) -> Vec<(f64, f64)> {
    let rows: Vec<Vec<f32>> = (0..matrix.rows).filter_map(|row| matrix.row(row).ok()).collect();
    let product = |w: &[f32], x: &[f32]| {
        let (mut sum, mut bound) = (0.0, 0.0);
        for (w, x) in w.chunks(BLOCK).zip(x.chunks(BLOCK)) {
            let step = x.iter().fold(0.0_f64, |most, x| most.max(f64::from(x.abs()))) / 127.0;
            for (&w, &x) in w.iter().zip(x) {
                let (w, x) = (f64::from(w), f64::from(x));
                sum += w * x;
                // Codes times scales and minima are summed apart: each may be larger than their sum.
                bound += w.abs() * (HALF * step) + SUMS * (w.abs() * (x.abs() + step)) + SUMS * step;
            }
        }
        (sum, bound)
    };
    x.chunks(matrix.cols).flat_map(|x| rows.iter().map(move |w| product(w, x))).collect()
}

fn project(weight: &Arc<Matrix>, norm: Option<Norm>) -> OpKind {
    let weight = Arc::clone(weight);
    OpKind::Project(Project { norm, weight, bias: None, lora: None, activation: None, residual: false })
}

fn case(name: String, kind: OpKind, outputs: usize, x: Vec<f32>, n: usize, bounds: Vec<f64>) -> Rounded {
    let plan = Draft::new().map(kind, Extent::Rows, &[x.len() / n], outputs);
    let step = step(rows(n, &mut Random(n as u64)), 0, 1);
    Rounded { case: Case::new(name, plan, step, vec![(TensorId(0), x)]), bounds }
}

fn plain(inputs: usize, outputs: usize, n: usize, format: PanelFormat) -> Rounded {
    let random = &mut Random((inputs + outputs) as u64);
    let (weight, x) = (random.matrix(outputs, inputs, format), random.numbers(n * inputs, 1.0));
    let bounds = products(&weight, &x).into_iter().map(|(_, bound)| bound).collect();
    case(format!("{n} rows, {inputs} → {outputs}, {format}"), project(&weight, None), outputs, x, n, bounds)
}

/// x / rms(x) is what is rounded.
fn normed(inputs: usize, outputs: usize, n: usize, format: PanelFormat) -> Rounded {
    let random = &mut Random((inputs * outputs) as u64);
    let (weight, x) = (random.matrix(outputs, inputs, format), random.numbers(n * inputs, 1.0));
    let eps = 1e-5;
    let normal = |x: &[f32]| -> Vec<f32> {
        let squares: f64 = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
        let scale = 1.0 / (squares / inputs as f64 + f64::from(eps)).sqrt();
        x.iter().map(|&x| (f64::from(x) * scale) as f32).collect()
    };
    let normal: Vec<f32> = x.chunks(inputs).flat_map(normal).collect();
    let bounds = products(&weight, &normal).into_iter().map(|(_, bound)| bound).collect();
    let weights = NormWeights { weight: None, bias: None };
    let kind = project(&weight, Some(Norm { kind: NormKind::Rms, weights, eps, groups: 1 }));
    case(format!("{n} rows, norm, {inputs} → {outputs}, {format}"), kind, outputs, x, n, bounds)
}

/// silu(g) u: |silu'| < 1.1, |silu(g)| <= |g|.
fn gated(inputs: usize, outputs: usize, n: usize, format: PanelFormat) -> Rounded {
    let random = &mut Random((inputs + 3 * outputs) as u64);
    let [gate, up] = [(), ()].map(|()| random.matrix(outputs, inputs, format));
    let x = random.numbers(n * inputs, 1.0);
    let bound = |((g, of_g), (u, of_u)): ((f64, f64), (f64, f64))| {
        1.1 * of_g * (u.abs() + of_u) + g.abs() * of_u + SUMS * (g * u).abs()
    };
    let bounds = products(&gate, &x).into_iter().zip(products(&up, &x)).map(bound).collect();
    let (gate_bias, up_bias, function, lora) = (None, None, Activation::Silu, None);
    let kind = OpKind::GateUp(GateUp { gate, gate_bias, up, up_bias, function, lora });
    case(format!("{n} rows, gated, {inputs} → {outputs}, {format}"), kind, outputs, x, n, bounds)
}

/// Every format whose codes are integers, in every projection.
pub fn rounded() -> Vec<Rounded> {
    let formats = QUANTIZED.into_iter().filter(|format| format.offset != Offset::NormalFloat);
    let of_format = |(i, format): (usize, PanelFormat)| {
        let (inputs, outputs, n) = (33 + 40 * i, 17 + 13 * i, [1, 70, 18][i % 3]);
        [
            plain(inputs, outputs, n, format),
            normed(inputs + 5, outputs, n, format),
            gated(inputs, outputs, n, format),
        ]
    };
    formats.enumerate().flat_map(of_format).collect()
}

impl Rounded {
    /// Checks the backend under test against the twins on the dequantized weights; the largest share of a bound.
    ///
    /// # Errors
    /// A [`Failure`] that names an element beyond its bound, or says that nothing was rounded.
    pub fn check(&self, make: Make) -> Result<f64, Failure> {
        let failure = |what: String| Failure { case: self.case.name.clone(), what };
        let seen = |backend| self.case.run(backend).map_err(|error| failure(error.to_string()));
        let (expected, got) = (seen(self.case.reference())?, seen(make(&self.case))?);
        let [Seen::Floats(_, expected)] = expected.as_slice() else { return Err(failure("no tensor".into())) };
        let [Seen::Floats(_, got)] = got.as_slice() else { return Err(failure("no tensor".into())) };
        let mut largest = 0.0_f64;
        for (index, ((&expected, &got), &bound)) in expected.iter().zip(got).zip(&self.bounds).enumerate() {
            let error = (f64::from(got) - f64::from(expected)).abs();
            // Written so that NaN fails.
            if !(got.is_finite() && error <= bound) {
                return Err(failure(format!("[{index}] is {got}, expected {expected} within {bound:e}")));
            }
            largest = largest.max(error / bound);
        }
        if largest < 1e-3 {
            return Err(failure(format!("errors of {largest:e} of their bounds: was anything rounded?")));
        }
        Ok(largest)
    }
}
