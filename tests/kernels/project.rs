//! Projections with all their epilogues.

use std::sync::Arc;

use wattle_engine::backend::Step;
use wattle_engine::model::{Activation, Dtype, Format, Matrix, NormKind, NormWeights, PanelFormat};
use wattle_engine::plan::{Extent, Norm, OpKind, Project, Site, TensorId};

use crate::Case;
use crate::fixture::{
    Draft, QUANTIZED, Random, VOCAB, carrying, in_both_classes, lora_rows, of_rank, rows, sampled_rows,
    shuffled, site, site_in_parts, slots, step, t_values,
};

/// Measured on the CPU's f32 kernels: 1.8e-7 at most (sums of up to 1031 terms); other orders of summation may differ
/// by a few times that.
pub(crate) const TOLERANCE: f32 = 4e-6;

/// Every combination of parts that a fused plan has, at sizes around those of workgroups and vectors.
pub fn cases() -> Vec<Case> {
    let (f32, f16, bf16) = (Dtype::F32, Dtype::F16, Dtype::Bf16);
    let plain = [
        (1, 1, 1, f32),
        (3, 5, 2, bf16),
        (4, 64, 3, f16),
        (63, 65, 4, f32),
        (64, 63, 9, f32),
        (65, 127, 5, f16),
        (173, 128, 6, bf16),
        (130, 1, 7, f16),
        (1031, 33, 8, f32),
        (256, 200, 1, bf16),
    ];
    let mut cases: Vec<Case> =
        plain.map(|(inputs, outputs, n, dtype)| open(inputs, outputs, n, dtype)).into();
    let shapes = [
        (130, 17, 5),
        (33, 48, 1),
        (256, 65, 3),
        (32, 15, 8),
        (31, 33, 9),
        (200, 16, 2),
        (160, 100, 4),
        (64, 1, 7),
    ];
    for (index, format) in QUANTIZED.into_iter().enumerate() {
        let [first, second] = [shapes[index], shapes[(index + 3) % shapes.len()]];
        cases.extend([first, second].map(|(inputs, outputs, n)| open(inputs, outputs, n, format)));
        cases.push(stacked(1 + index, format));
    }
    let functions = [Activation::Gelu, Activation::GeluTanh, Activation::Relu, Activation::Silu];
    cases.extend(functions.iter().zip([1, 3, 4, 9]).map(|(&f, n)| with_all(n, Some(f), false)));
    cases.extend([1, 2, 5, 8, 9].map(|n| with_all(n, None, true)));
    cases.extend([(1, f32), (4, f16), (9, bf16)].map(|(n, dtype)| stacked(n, dtype)));
    cases.extend([(9, 3), (9, 1), (1, 1)].map(|(n, every)| head(n, every)));
    let parts = [(1, 65), (2, 10), (5, 3), (9, 4), (8, 1)];
    cases.extend(parts.map(|(n, part)| in_parts(n, part, 6)));
    let shapes = [(1, 1, 1), (3, 5, 2), (64, 65, 9), (173, 33, 4), (1031, 16, 8), (65, 128, 5)];
    cases.extend(shapes.map(|(inputs, outputs, n)| normed(inputs, outputs, n, f32)));
    cases.extend([(70, 40, 1, f16), (130, 21, 33, bf16)].map(|(i, o, n, dtype)| normed(i, o, n, dtype)));
    let formats = QUANTIZED.into_iter().enumerate();
    cases.extend(formats.map(|(i, format)| normed(64 + 7 * i, 16 + 5 * i, 1 + i, format)));
    let formats = [(0, 130, 17, 1), (1, 64, 33, 9), (5, 333, 16, 4)];
    cases.extend(formats.map(|(i, inputs, outputs, n)| ordered(inputs, outputs, n, QUANTIZED[i])));
    // More rows than a tile has.
    cases.extend([open(65, 67, 66, f16), open(40, 130, 20, QUANTIZED[1]), with_all(70, None, true)]);
    cases.extend([in_parts(67, 10, 6), stacked(65, QUANTIZED[2]), normed(70, 66, 69, f32)]);
    // More ranks than are multiplied at a time.
    cases.push(in_parts(18, 33, 70));
    in_both_classes(cases)
}

/// A matrix whose columns are in another order than its inputs, with LoRA on what they are in x.
fn ordered(inputs: usize, outputs: usize, n: usize, format: PanelFormat) -> Case {
    let random = &mut Random((inputs + outputs) as u64);
    let weight = random.matrix(outputs, inputs, format);
    let site = site(inputs, &[outputs]);
    let op = Project { lora: Some(Arc::clone(&site)), residual: true, ..project(shuffled(&weight, random)) };
    let widths = [inputs, site.t_width(), outputs];
    let plan = Draft::new().map(OpKind::Project(op), Extent::Rows, &widths, outputs);
    let residual = random.numbers(n * outputs, 1.0);
    let name = format!("{n} rows, {inputs} → {outputs} in another order, {}", Format::from(format));
    lora_case(name, plan, &site, n, 1, vec![residual], random)
}

fn project(weight: Arc<Matrix>) -> Project {
    Project { norm: None, weight, bias: None, lora: None, activation: None, residual: false }
}

fn finish(name: String, plan: wattle_engine::plan::Plan, step: Step, inputs: Vec<Vec<f32>>) -> Case {
    let import = (0..).map(TensorId).zip(inputs).collect();
    Case { tolerance: TOLERANCE, ..Case::new(name, plan, step, import) }
}

/// Only W x.
fn open(inputs: usize, outputs: usize, n: usize, format: impl Into<Format>) -> Case {
    let format = format.into();
    let random = &mut Random((inputs * outputs) as u64);
    let kind = OpKind::Project(project(random.matrix(outputs, inputs, format)));
    let plan = Draft::new().map(kind, Extent::Rows, &[inputs], outputs);
    let x = random.numbers(n * inputs, 1.0);
    finish(format!("{n} rows, {inputs} → {outputs}, {format}"), plan, step(rows(n, random), 0, 1), vec![x])
}

/// Bias, LoRA, an activation or not, a residual or not.
fn with_all(n: usize, activation: Option<Activation>, residual: bool) -> Case {
    let (inputs, outputs) = (65, 77);
    let random = &mut Random(n as u64);
    let site = site(inputs, &[outputs]);
    let weight = random.matrix(outputs, inputs, Dtype::F32);
    let bias = Some(random.vector(outputs));
    let op = Project { bias, lora: Some(Arc::clone(&site)), activation, residual, ..project(weight) };
    let mut widths = vec![inputs, site.t_width()];
    widths.extend(residual.then_some(outputs));
    let plan = Draft::new().map(OpKind::Project(op), Extent::Rows, &widths, outputs);
    let residual = random.numbers(n * outputs, 1.0);
    lora_case(
        format!("{n} rows, bias, LoRA, {activation:?}, residual"),
        plan,
        &site,
        n,
        1,
        vec![residual],
        random,
    )
}

/// q, k and v: a matrix of three parts, with three targets.
fn stacked(n: usize, format: impl Into<Format>) -> Case {
    let format = format.into();
    let (inputs, outputs) = (70, [70, 20, 21]);
    let random = &mut Random(n as u64);
    let parts = outputs.map(|outputs| random.matrix(outputs, inputs, format));
    let Some(weight) = Matrix::stack(&parts.each_ref().map(|part| &**part)) else {
        unreachable!("same columns")
    };
    let site = site(inputs, &outputs);
    let bias = Some(random.vector(weight.rows));
    let op = Project { bias, lora: Some(Arc::clone(&site)), ..project(Arc::new(weight)) };
    let width = outputs.iter().sum();
    let plan = Draft::new().map(OpKind::Project(op), Extent::Rows, &[inputs, site.t_width()], width);
    lora_case(format!("{n} rows, stacked, {format}"), plan, &site, n, 1, vec![], random)
}

/// t in partial sums.
fn in_parts(n: usize, part: usize, rank: usize) -> Case {
    let (inputs, outputs) = (65, 77);
    let random = &mut Random(n as u64);
    let site = of_rank(&site_in_parts(inputs, &[outputs], part), rank);
    let weight = random.matrix(outputs, inputs, Dtype::F32);
    let op = Project { lora: Some(Arc::clone(&site)), residual: true, ..project(weight) };
    let plan = Draft::new().map(OpKind::Project(op), Extent::Rows, &[inputs, site.t_len(), outputs], outputs);
    let residual = random.numbers(n * outputs, 1.0);
    lora_case(
        format!("{n} rows, t in parts of {part}, rank {rank}"),
        plan,
        &site,
        n,
        1,
        vec![residual],
        random,
    )
}

/// An RMS norm first; rows have squares down to the size of ε, so that a wrong ε shows. Odd n carry A x.
fn normed(inputs: usize, outputs: usize, n: usize, format: impl Into<Format>) -> Case {
    let format = format.into();
    let random = &mut Random((inputs * outputs) as u64);
    let weights = NormWeights { weight: (n != 2).then(|| random.vector(inputs)), bias: None };
    let norm = Some(Norm { kind: NormKind::Rms, weights, eps: 1e-5, groups: 1 });
    let bias = (!outputs.is_multiple_of(3)).then(|| random.vector(outputs));
    let op = Project { norm, bias, ..project(random.matrix(outputs, inputs, format)) };
    let plan = Draft::new().map(OpKind::Project(op), Extent::Rows, &[inputs], outputs);
    let x = (0..n).flat_map(|line| random.numbers(inputs, [1.0, 3e-3, 30.0][line % 3])).collect();
    let name = format!("{n} rows, norm, {inputs} → {outputs}, {format}");
    if n.is_multiple_of(2) {
        return finish(name, plan, step(rows(n, random), 0, 1), vec![x]);
    }
    // Of many rows, more rank rows than the small tiles have outputs.
    let site = of_rank(&site(inputs, &[7, 2, 3]), if n > 64 { 12 } else { 6 });
    let (slots, step) = (slots(&site, random), step(lora_rows(n, random), 0, 1));
    Case { slots, ..finish(format!("{name}, carrying"), carrying(plan, &site), step, vec![x]) }
}

/// Only for sampled rows, whose slots and masks are those of their rows.
fn head(n: usize, every: usize) -> Case {
    let inputs = 33;
    let random = &mut Random(n as u64);
    let site = site(inputs, &[VOCAB]);
    let op = Project { lora: Some(Arc::clone(&site)), ..project(random.matrix(VOCAB, inputs, Dtype::Bf16)) };
    let plan = Draft::new().map(OpKind::Project(op), Extent::Samples, &[inputs, site.t_width()], VOCAB);
    lora_case(format!("every {every}. of {n} rows sampled"), plan, &site, n, every, vec![], random)
}

/// A case whose inputs are x, t, and `more`.
fn lora_case(
    name: String,
    plan: wattle_engine::plan::Plan,
    site: &Site,
    n: usize,
    every: usize,
    more: Vec<Vec<f32>>,
    random: &mut Random,
) -> Case {
    let slots = slots(site, random);
    let step = step(lora_rows(n, random), 0, every);
    let of_extent =
        if plan.tensors[0].extent == Extent::Rows { step.rows.clone() } else { sampled_rows(&step) };
    let x = random.numbers(of_extent.len() * site.cols, 1.0);
    let t = t_values(site, &slots, &of_extent, random);
    let needed = plan.ops[0].inputs.len();
    let inputs = [x, t].into_iter().chain(more).take(needed).collect();
    Case { slots, ..finish(name, plan, step, inputs) }
}
