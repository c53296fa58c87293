//! Projections of prompts in fast precision: inputs are rounded to 8 bits before they meet weights whose codes are
//! integers, and with all others (on a GPU) inputs and weights are rounded to f16. What that may change of each output
//! follows from the inputs and the weights.

use std::sync::Arc;

use wattle_engine::Row;
use wattle_engine::adapter::{Factors, Place};
use wattle_engine::model::{Activation, Dtype, Format, Matrix, NormKind, NormWeights, Offset};
use wattle_engine::plan::{Extent, GATE_UP_PART, GateUp, Norm, OpKind, Plan, Project, Site, TensorId};

use crate::Case;
use crate::case::{Make, Seen};
use crate::compare::Failure;
use crate::fixture::{
    Draft, QUANTIZED, Random, carrying, lora_rows, site, site_in_parts, slots, step, t_values,
};

/// A case of one op, and for each of its output tensors by how much each element may be off.
#[derive(Clone)]
pub struct Rounded {
    case: Case,
    bounds: Vec<Vec<f64>>,
}

/// Columns that are rounded together.
const BLOCK: usize = 32;

/// Codes are off by 1/2, and by what the arithmetic that makes them adds: 127 times a few units in the last place.
const HALF: f64 = 0.5 + 1e-4;

/// f32 sums of some hundred terms, relative to the sum of their sizes: 2^-24 per step, taken generously.
pub(crate) const SUMS: f64 = 1e-5;

/// What rounding to f16 may change, in either direction: of a number its 2^-10th, and of very small ones 2^-24.
const F16: [f64; 2] = [1.0 / 1024.0, 1.0 / 16_777_216.0];

/// The largest f16: what larger numbers become.
const LARGEST: f64 = 65504.0;

/// w · x, and by how much it may be off where both are rounded to f16.
fn of_halves(w: &[f32], x: &[f32]) -> (f64, f64) {
    let (mut sum, mut bound) = (0.0, 0.0);
    for (&w, &x) in w.iter().zip(x) {
        let (w, x) = (f64::from(w), f64::from(x));
        let [of_w, of_x] = [w, x].map(|v| F16[0] * v.abs() + F16[1] + (v.abs() - LARGEST).max(0.0));
        sum += w * x;
        bound += of_w * (x.abs() + of_x) + w.abs() * of_x + SUMS * (w * x).abs();
    }
    (sum, bound)
}

/// w · x, and by how much it may be off where x is rounded to 8 bits.
fn of_codes(w: &[f32], x: &[f32]) -> (f64, f64) {
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
}

/// w · x with a row of weights of this format, and by how much it may be off.
fn product(format: Format, w: &[f32], x: &[f32]) -> (f64, f64) {
    match format {
        Format::Panels(panels) if panels.offset != Offset::NormalFloat => of_codes(w, x),
        _ => of_halves(w, x),
    }
}

/// W x for every line of x, exactly, and by how much each may be off.
pub fn products(matrix: &Matrix, x: &[f32]) -> Vec<(f64, f64)> {
    let rows: Vec<Vec<f32>> = (0..matrix.rows).filter_map(|row| matrix.row(row).ok()).collect();
    let product = |w: &[f32], x: &[f32]| product(matrix.format, w, x);
    x.chunks(matrix.cols).flat_map(|x| rows.iter().map(move |w| product(w, x))).collect()
}

/// Bounds of t = A v that a launch carries: `bound` gives that of a sum of a line over a part of a row of A, which
/// begins at a column.
fn of_t(
    site: &Site,
    slots: &[Option<Arc<Factors>>],
    rows: &[Row],
    bound: impl Fn(usize, usize, &[f32]) -> f64,
) -> Vec<f64> {
    let mut bounds = vec![0.0; rows.len() * site.t_len()];
    for (line, row) in rows.iter().enumerate().filter(|(_, row)| row.lora_in(site.layer)) {
        for (index, target) in site.targets.iter().enumerate() {
            let place = Place { layer: site.layer, target: target.target };
            let factors = slots.get(row.slot as usize).and_then(|slot| slot.as_ref());
            let Some(pair) = factors.and_then(|factors| factors.pairs().get(&place)) else { continue };
            for (r, a) in pair.a.chunks(pair.cols).enumerate() {
                for (p, part) in a.chunks(site.part).enumerate() {
                    let at = p * site.t_width() + index * site.capacity.rank + r;
                    bounds[line * site.t_len() + at] = bound(line, p * site.part, part);
                }
            }
        }
    }
    bounds
}

pub(crate) fn project(weight: &Arc<Matrix>, norm: Option<Norm>, lora: Option<Arc<Site>>) -> OpKind {
    let weight = Arc::clone(weight);
    OpKind::Project(Project { norm, weight, bias: None, lora, activation: None, residual: false })
}

/// Rows of a prompt, with LoRA and without, and an input for each tensor that goes in.
fn case(
    name: String,
    plan: Plan,
    slots: Vec<Option<Arc<Factors>>>,
    rows: Vec<Row>,
    inputs: Vec<Vec<f32>>,
) -> Case {
    let import = (0..).map(TensorId).zip(inputs).collect();
    Case { slots, ..Case::new(name, plan, step(rows, 0, 1), import) }
}

/// + B t, which is not rounded.
fn plain(inputs: usize, outputs: usize, n: usize, format: Format) -> Rounded {
    let random = &mut Random((inputs + outputs) as u64);
    let (weight, x) = (random.matrix(outputs, inputs, format), random.numbers(n * inputs, 1.0));
    let site = site(inputs, &[outputs]);
    let (slots, rows) = (slots(&site, random), lora_rows(n, random));
    let t = t_values(&site, &slots, &rows, random);
    let bounds = products(&weight, &x).into_iter().map(|(_, bound)| bound + SUMS).collect();
    let kind = project(&weight, None, Some(Arc::clone(&site)));
    let plan = Draft::new().map(kind, Extent::Rows, &[inputs, site.t_width()], outputs);
    let name = format!("{n} rows, {inputs} → {outputs}, {format}");
    Rounded { case: case(name, plan, slots, rows, vec![x, t]), bounds: vec![bounds] }
}

/// Inputs beyond what f16 holds, and such as are not finite: neither are their outputs then.
fn odd(format: Format) -> Rounded {
    let (inputs, outputs, n) = (80, 21, 6);
    let random = &mut Random(5);
    let (weight, mut x) = (random.matrix(outputs, inputs, format), random.numbers(n * inputs, 1.0));
    for (line, value) in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e6, -1e6].into_iter().enumerate() {
        x[line * inputs + 7 + 11 * line] = value;
    }
    let bounds = products(&weight, &x).into_iter().map(|(_, bound)| bound).collect();
    let plan = Draft::new().map(project(&weight, None, None), Extent::Rows, &[inputs], outputs);
    let rows = (0..n as u32).map(|position| Row::prompt(0, position, 0)).collect();
    let name = format!("odd inputs, {format}");
    Rounded { case: case(name, plan, Vec::new(), rows, vec![x]), bounds: vec![bounds] }
}

/// x / rms(x) is what is rounded. A norm(x) is carried.
fn normed(inputs: usize, outputs: usize, n: usize, format: Format) -> Rounded {
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
    let site = site(inputs, &[7, 2, 3]);
    let (slots, rows) = (slots(&site, random), lora_rows(n, random));
    let of_t =
        of_t(&site, &slots, &rows, |line, _, a| product(format, a, &normal[line * inputs..][..inputs]).1);
    let weights = NormWeights { weight: None, bias: None };
    let kind = project(&weight, Some(Norm { kind: NormKind::Rms, weights, eps, groups: 1 }), None);
    let plan = carrying(Draft::new().map(kind, Extent::Rows, &[inputs], outputs), &site);
    let name = format!("{n} rows, norm, {inputs} → {outputs}, {format}");
    Rounded { case: case(name, plan, slots, rows, vec![x]), bounds: vec![bounds, of_t] }
}

/// silu(g) u: |silu'| < 1.1, |silu(g)| <= |g|. A y is carried, and is off by what y is.
fn gated(inputs: usize, outputs: usize, n: usize, format: Format) -> Rounded {
    let random = &mut Random((inputs + 3 * outputs) as u64);
    let [gate, up] = [(), ()].map(|()| random.matrix(outputs, inputs, format));
    let x = random.numbers(n * inputs, 1.0);
    let bound = |((g, of_g), (u, of_u)): ((f64, f64), (f64, f64))| {
        1.1 * of_g * (u.abs() + of_u) + g.abs() * of_u + SUMS * (g * u).abs()
    };
    let both = products(&gate, &x).into_iter().zip(products(&up, &x));
    let sizes: Vec<f64> = both.clone().map(|((g, _), (u, _))| (g * u).abs()).collect();
    let bounds: Vec<f64> = both.map(bound).collect();
    let site = site_in_parts(outputs, &[9], GATE_UP_PART.min(outputs));
    let (slots, rows) = (slots(&site, random), lora_rows(n, random));
    let of_t = of_t(&site, &slots, &rows, |line, start, a| {
        let from = line * outputs + start;
        let terms = a.iter().zip(&bounds[from..]).zip(&sizes[from..]);
        terms.map(|((&a, bound), size)| f64::from(a.abs()) * (bound + SUMS * size)).sum()
    });
    let (gate_bias, up_bias, function, lora) = (None, None, Activation::Silu, None);
    let kind = OpKind::GateUp(GateUp { gate, gate_bias, up, up_bias, function, lora });
    let plan = carrying(Draft::new().map(kind, Extent::Rows, &[inputs], outputs), &site);
    let name = format!("{n} rows, gated, {inputs} → {outputs}, {format}");
    Rounded { case: case(name, plan, slots, rows, vec![x]), bounds: vec![bounds, of_t] }
}

/// Every format in every projection.
pub fn rounded() -> Vec<Rounded> {
    let dense = [Dtype::F32, Dtype::F16, Dtype::Bf16].map(Format::Dense);
    let formats = QUANTIZED.into_iter().map(Format::from).chain(dense);
    let of_format = |(i, format): (usize, Format)| {
        let (inputs, outputs, n) = match format {
            Format::Panels(_) => (33 + 40 * i, 17 + 13 * i, [1, 70, 18][i % 3]),
            // They are larger: where bindings are small, two that belong together must not be cut.
            Format::Dense(_) => (69 + 32 * (i % 3), 17 + 13 * (i % 3), 70),
        };
        [
            plain(inputs, outputs, n, format),
            normed(inputs + 5, outputs, n, format),
            gated(inputs, outputs, n, format),
        ]
    };
    let odd = [Format::Panels(QUANTIZED[1]), Format::Dense(Dtype::F32), Format::Dense(Dtype::F16)].map(odd);
    formats.enumerate().flat_map(of_format).chain(odd).collect()
}

impl Rounded {
    pub(crate) fn new(case: Case, bounds: Vec<Vec<f64>>) -> Self {
        Self { case, bounds }
    }

    /// The case, for what must hold bit for bit.
    pub fn case(&self) -> &Case {
        &self.case
    }

    /// Checks the backend under test against the twins on the dequantized weights; the largest share of a bound.
    ///
    /// # Errors
    /// A [`Failure`] that names an element beyond its bound, or says that nothing was rounded.
    pub fn check(&self, make: Make) -> Result<f64, Failure> {
        let failure = |what: String| Failure { case: self.case.name.clone(), what };
        let seen = |backend| self.case.run(backend).map_err(|error| failure(error.to_string()));
        let (expected, got) = (seen(self.case.reference())?, seen(make(&self.case))?);
        let mut largest = 0.0_f64;
        for ((expected, got), bounds) in expected.iter().zip(&got).zip(&self.bounds) {
            let (Seen::Floats(name, expected), Seen::Floats(_, got)) = (expected, got) else {
                return Err(failure("no tensor".into()));
            };
            let share = share(expected, got, bounds).map_err(|what| failure(format!("{name}{what}")))?;
            largest = largest.max(share);
        }
        if largest < 1e-3 {
            return Err(failure(format!("errors of {largest:e} of their bounds: was anything rounded?")));
        }
        Ok(largest)
    }
}

/// The largest share of a bound. What the twins leave alone (poisoned) must be left alone.
fn share(expected: &[f32], got: &[f32], bounds: &[f64]) -> Result<f64, String> {
    if expected.len() != bounds.len() || got.len() != bounds.len() {
        return Err(format!(" has {} elements, expected {}", got.len(), bounds.len()));
    }
    let mut largest = 0.0_f64;
    for (index, ((&expected, &got), &bound)) in expected.iter().zip(got).zip(bounds).enumerate() {
        if expected.is_nan() && got.is_nan() || expected.is_infinite() && !got.is_finite() {
            continue;
        }
        let error = (f64::from(got) - f64::from(expected)).abs();
        // Written so that NaN fails.
        if !(got.is_finite() && error <= bound) {
            return Err(format!("[{index}] is {got}, expected {expected} within {bound:e}"));
        }
        largest = largest.max(error / bound);
    }
    Ok(largest)
}
