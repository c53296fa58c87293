//! Gated MLP inputs.

use std::sync::Arc;

use wattle_engine::model::{Activation, Dtype, Format};
use wattle_engine::plan::{Extent, GateUp, OpKind, TensorId};

use crate::Case;
use crate::fixture::{Draft, QUANTIZED, Random, lora_rows, rows, site, slots, step, t_values};

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
    dense.into_iter().chain(quantized).collect()
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
