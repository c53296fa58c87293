//! Gated MLP inputs.

use std::sync::Arc;

use wattle_engine::adapter::Factors;
use wattle_engine::backend::Step;
use wattle_engine::model::{Activation, Dtype, Format};
use wattle_engine::plan::{Extent, GATE_UP_PART, GateUp, OpKind, Site, TensorId};

use crate::fixture::{
    Draft, QUANTIZED, Random, carrying, in_both_classes, lora_rows, rows, shuffled, site, site_in_parts,
    slots, step, t_values,
};
use crate::{Act, Case};

/// As for `project`; the product of two sums has the errors of both.
const TOLERANCE: f32 = 2.0 * crate::project::TOLERANCE;

/// With and without LoRA on both halves.
pub fn cases() -> Vec<Case> {
    let (f32, f16, bf16) = (Dtype::F32, Dtype::F16, Dtype::Bf16);
    let silu = Activation::Silu;
    let shapes = [
        (1, 1, 1, f32, silu, false),
        (64, 65, 9, f16, silu, false),
        (65, 63, 1, f32, silu, true),
        (130, 77, 2, bf16, silu, true),
        (70, 128, 6, f32, Activation::GeluTanh, true),
        (173, 33, 9, f16, Activation::Gelu, true),
        (31, 127, 8, f32, Activation::Relu, true),
    ];
    let dense = shapes.map(|(inputs, outputs, n, dtype, f, lora)| case(inputs, outputs, n, dtype, f, lora));
    let quantized = QUANTIZED.into_iter().enumerate();
    let quantized =
        quantized.map(|(i, format)| case(65 + 30 * i, 16 + 7 * i, 1 + i, format, silu, i % 2 > 0));
    let carried = [
        (3, 1, 1, f32, false),
        (64, 33, 9, f16, true),
        (65, 16, 1, bf16, true),
        (130, 77, 4, f32, true),
        (31, 15, 8, f32, false),
    ];
    let carried = carried.map(|(inputs, outputs, n, dtype, lora)| {
        carrying_case(case(inputs, outputs, n, dtype, silu, lora), outputs)
    });
    let in_panels = QUANTIZED
        .into_iter()
        .enumerate()
        .map(|(i, format)| carrying_case(case(64, 30 + 3 * i, 1 + i, format, silu, i % 2 == 0), 30 + 3 * i));
    let ordered = [(0, 70, 33, 1, false), (5, 130, 40, 9, true)].map(|(i, inputs, outputs, n, lora)| {
        in_another_order(case(inputs, outputs, n, QUANTIZED[i], silu, lora))
    });
    // More rows than a tile has.
    let many = case(40, 70, 66, f32, silu, true);
    let many = [carrying_case(many.clone(), 70), many];
    let cases = dense.into_iter().chain(quantized).chain(carried).chain(in_panels);
    in_both_classes(cases.chain(ordered).chain(many).collect())
}

/// With the columns of both matrices in another order than the inputs.
fn in_another_order(case: Case) -> Case {
    let mut plan = (*case.plan).clone();
    if let OpKind::GateUp(op) = &mut plan.ops[0].kind {
        (op.gate, op.up) = (shuffled(&op.gate, &mut Random(7)), shuffled(&op.up, &mut Random(7)));
    }
    Case { name: format!("{}, in another order", case.name), plan: Arc::new(plan), ..case }
}

/// With A y of the projection behind it, a partial sum per 16 outputs.
fn carrying_case(case: Case, outputs: usize) -> Case {
    let random = &mut Random(outputs as u64);
    // The projections of one step are of one layer, but of other targets.
    let site = site_in_parts(outputs, &[0, 0, 9], GATE_UP_PART.min(outputs));
    let site = Arc::new(Site { targets: vec![site.targets[2]], ..(*site).clone() });
    let Some(Act::Run { range, step, import }) = case.acts.into_iter().next() else { unreachable!() };
    let lora = !case.slots.is_empty();
    let rows = if lora { step.rows.clone() } else { lora_rows(step.rows.len(), random) };
    let acts = vec![Act::Run { range, step: Step { rows, ..step }, import }];
    let more = slots(&site, random);
    let own = if lora { case.slots } else { vec![None; more.len()] };
    let merged = |(own, more): (Option<Arc<Factors>>, Option<Arc<Factors>>)| {
        let pairs = own.iter().chain(&more).flat_map(|factors| factors.pairs().clone()).collect();
        (own.is_some() || more.is_some()).then(|| Arc::new(Factors::new(pairs)))
    };
    let slots = own.into_iter().zip(more).map(merged).collect();
    let plan = Arc::new(carrying((*case.plan).clone(), &site));
    Case { name: format!("{}, carrying", case.name), plan, acts, slots, kv: case.kv, ..case }
}

fn case(
    inputs: usize,
    outputs: usize,
    n: usize,
    format: impl Into<Format>,
    function: Activation,
    lora: bool,
) -> Case {
    let format = format.into();
    let random = &mut Random((inputs * outputs) as u64);
    let site = site(inputs, &[outputs, outputs]);
    let op = GateUp {
        gate: random.matrix(outputs, inputs, format),
        gate_bias: lora.then(|| random.vector(outputs)),
        up: random.matrix(outputs, inputs, format),
        up_bias: (lora && n > 1).then(|| random.vector(outputs)),
        function,
        lora: lora.then(|| Arc::clone(&site)),
    };
    let widths = [inputs, site.t_width()];
    let plan = Draft::new().map(OpKind::GateUp(op), Extent::Rows, &widths[..1 + usize::from(lora)], outputs);
    let name =
        format!("{n} rows, {inputs} → {outputs}, {format}, {function:?}{}", if lora { ", LoRA" } else { "" });
    let mut import = vec![(TensorId(0), random.numbers(n * inputs, 1.0))];
    if !lora {
        return Case { tolerance: TOLERANCE, ..Case::new(name, plan, step(rows(n, random), 0, 1), import) };
    }
    let (slots, rows) = (slots(&site, random), lora_rows(n, random));
    import.push((TensorId(1), t_values(&site, &slots, &rows, random)));
    Case { slots, tolerance: TOLERANCE, ..Case::new(name, plan, step(rows, 0, 1), import) }
}
