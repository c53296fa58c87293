// y = f(G x + b_g + B_g t) * (U x + b_u + B_u t) for samples, and for rows of class generated.
// t = A y of the site that is carried, one partial sum per workgroup's outputs.
// Grid: one workgroup per 16 outputs and COLS rows of x; lanes split the inputs. Bound by reading G and U.

import package::shared::carry::{Carried, carry, values};
import package::shared::dots::{COLS, DEPTH, OUTPUTS, Sums, WIDE, place, reduce, total};
import package::shared::functions::activate;
import package::shared::gated::{gate_unit, up_unit};
import package::shared::inputs::inputs;
import package::shared::lane::{Lane, group_index};
import package::shared::lora::add_lora;
import package::shared::step::{generated, row_index, step_row};
import package::shared::panels::{Panels, prepare};
import package::shared::unit::{fold_unit, units};

struct Params {
    panels: Panels, // of quantized G and U
    k4: u32,       // vec4s of a row of G, U and x
    used: u32,     // elements used of the last of them
    rows: u32,     // outputs of this part of G and U
    first: u32,    // the first of them
    outputs: u32,  // of G: U's outputs count from here in the bias and in the LoRA site
    stride: u32,   // elements between rows of y
    extent: u32,
    function: u32, // f
    biased: u32,
}

@group(1) @binding(0) var<uniform> params: Params;
@group(1) @binding(4) var<storage, read> bias: array<f32>;    // [2, outputs]
@group(1) @binding(5) var<storage, read_write> y: array<f32>; // [n, stride]

// One output from its sums.
fn finish(g: f32, u: f32, output: u32, line: u32) -> f32 {
    var both = vec2f(g, u);
    if params.biased != 0u {
        both += vec2f(bias[output], bias[params.outputs + output]);
    }
    let row = step_row(row_index(line, params.extent));
    both = vec2f(add_lora(both.x, output, line, row), add_lora(both.y, params.outputs + output, line, row));
    return activate(params.function, both.x) * both.y;
}

@compute @workgroup_size(WIDE)
fn main(lane: Lane) {
    let n = generated(params.extent);
    let column_blocks = (n + COLS - 1u) / COLS;
    let column = group_index(lane) % column_blocks * COLS;
    let begin = group_index(lane) / column_blocks * OUTPUTS;
    if begin >= params.rows {
        return;
    }
    @if(nibbles)
    prepare(params.panels, lane.index);
    let block = begin / 4u + place(lane) % 4u;
    var gate_acc: Sums;
    var up_acc: Sums;
    for (var u = place(lane) / 4u; u < units(params.k4); u += DEPTH) {
        let gate = gate_unit(params.panels, params.rows, params.k4, block, u);
        let up = up_unit(params.panels, params.rows, params.k4, block, u);
        for (var c = 0u; c < COLS; c++) {
            let v = inputs(min(column + c, n - 1u), u, params.k4, params.used);
            gate_acc[c] = fold_unit(gate_acc[c], gate, v);
            up_acc[c] = fold_unit(up_acc[c], up, v);
        }
    }
    let c = min(lane.index / OUTPUTS, COLS - 1u);
    reduce(&gate_acc, lane);
    let g = total(lane.index % OUTPUTS, c, lane);
    workgroupBarrier();
    reduce(&up_acc, lane);
    let local = begin + lane.index % OUTPUTS;
    if lane.index < COLS * OUTPUTS && column + c < n && local < params.rows {
        let value = finish(g, total(lane.index % OUTPUTS, c, lane), params.first + local, column + c);
        y[(column + c) * params.stride + params.first + local] = value;
        values[lane.index] = value;
    }
    workgroupBarrier();
    let first = params.first + begin;
    let outputs = min(OUTPUTS, params.rows - begin);
    let lines = min(COLS, n - column);
    let carried = Carried(column, lines, params.extent, first / OUTPUTS, first, outputs, params.outputs, OUTPUTS);
    carry(carried, lane, WIDE);
}
