// y = f(W x + b + B t) + r for samples, and for rows of class generated.
// Grid: one workgroup per WORKGROUP_OUTPUTS outputs and COLS rows of x; lanes split the inputs. Bound by reading W.

import package::shared::dots::{COLS, DEPTH, OUTPUTS, Sums, WIDE, WORKGROUP_OUTPUTS, place, reduce, second, total};
import package::shared::functions::activate;
import package::shared::inputs::inputs;
import package::shared::lane::{Lane, group_index};
import package::shared::lora::{add_lora, site};
import package::shared::matrix::unit;
import package::shared::panels::{Panels, prepare};
import package::shared::partials::add_partials;
import package::shared::step::{generated, row_index, step_row};
import package::shared::unit::{fold_unit, units};

struct Params {
    panels: Panels, // of a quantized W
    k4: u32,       // vec4s of a row of W and of x
    used: u32,     // elements used of the last of them
    rows: u32,     // outputs of this part of W
    first: u32,    // the first of them
    stride: u32,   // elements between rows of y and r
    extent: u32,
    function: u32, // f
    biased: u32,
    residual: u32,
}

@group(1) @binding(0) var<uniform> params: Params;
@group(1) @binding(3) var<storage, read> bias: array<f32>;      // [outputs of W]
@group(1) @binding(4) var<storage, read> r: array<f32>;         // [n, stride]
@group(1) @binding(5) var<storage, read_write> y: array<f32>;   // [n, stride]

@compute @workgroup_size(WIDE)
fn main(lane: Lane) {
    let n = generated(params.extent);
    let column_blocks = (n + COLS - 1u) / COLS;
    let column = group_index(lane) % column_blocks * COLS;
    let begin = group_index(lane) / column_blocks * WORKGROUP_OUTPUTS;
    if begin >= params.rows {
        return;
    }
    @if(nibbles)
    prepare(params.panels, lane.index);
    var acc: Sums;
    let quad = begin / 4u + place(lane) % 4u;
    @if(paired)
    var others: Sums;
    @if(paired)
    let other = second(quad, begin, params.rows);
    for (var u = place(lane) / 4u; u < units(params.k4); u += DEPTH) {
        let w = unit(params.panels, params.rows, params.k4, quad, u);
        @if(paired)
        let v = unit(params.panels, params.rows, params.k4, other, u);
        for (var c = 0u; c < COLS; c++) {
            let x = inputs(min(column + c, n - 1u), u, params.k4, params.used);
            acc[c] = fold_unit(acc[c], w, x);
            @if(paired)
            others[c] = fold_unit(others[c], v, x);
        }
    }
    reduce(&acc, lane);
    finish(begin, column, n, lane);
    @if(paired)
    workgroupBarrier();
    @if(paired)
    reduce(&others, lane);
    @if(paired)
    finish(begin + OUTPUTS, column, n, lane);
}

// y of the outputs from `begin` on and the lines from `column` on, of what `reduce` has left. All lanes call.
// It stands behind `main`: naga 30 fails where it meets sizes of arrays before all overrides.
fn finish(begin: u32, column: u32, n: u32, lane: Lane) {
    let c = min(lane.index / OUTPUTS, COLS - 1u);
    let line = column + c;
    let local = begin + lane.index % OUTPUTS;
    let output = params.first + local;
    var value = total(lane.index % OUTPUTS, c, lane);
    if params.biased != 0u {
        value += bias[min(output, params.first + params.rows - 1u)];
    }
    if site.partials > 1u {
        value = add_partials(value, output, line, column, n, params.extent, lane);
    }
    if lane.index >= COLS * OUTPUTS || line >= n || local >= params.rows {
        return;
    }
    if site.partials <= 1u {
        value = add_lora(value, output, line, step_row(row_index(line, params.extent)));
    }
    value = activate(params.function, value);
    if params.residual != 0u {
        value += r[line * params.stride + output];
    }
    y[line * params.stride + output] = value;
}
