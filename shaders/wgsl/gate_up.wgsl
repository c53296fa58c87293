// y = f(G x + b_g + B_g t) * (U x + b_u + B_u t) for samples, and for rows of class generated.
// t = A y of the site that is carried, one partial sum per workgroup's outputs.
// Grid: one workgroup per `blocks` times 4 outputs and COLS rows of x; lanes split the inputs. Bound by reading G and U.

import package::shared::carry::{Carried, carry, values};
import package::shared::dots::{COLS, Sums, fold, masked, reduce, total};
import package::shared::functions::activate;
import package::shared::gated::{gate_weights, up_weights};
import package::shared::lane::{Lane, LANES, group_index};
import package::shared::lora::add_lora;
import package::shared::step::{generated, row_index, step_row};
import package::shared::panels::Panels;

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
    blocks: u32,   // of 4 outputs, one after the other; with a carried site 4
}

const MOST = 16u; // outputs of a workgroup

@group(1) @binding(0) var<uniform> params: Params;
@group(1) @binding(2) var<storage, read> x: array<vec4f>;     // [n, k4]
@group(1) @binding(4) var<storage, read> bias: array<f32>;    // [2, outputs]
@group(1) @binding(5) var<storage, read_write> y: array<f32>; // [n, stride]

// Outputs of 4 rows of G and U, to y, and to `values` from `at` on.
fn four(block: u32, at: u32, column: u32, lane: Lane) {
    let n = generated(params.extent);
    var gate_acc: Sums;
    var up_acc: Sums;
    for (var i = lane.index; i < params.k4; i += LANES) {
        let g = gate_weights(params.panels, params.rows, params.k4, block, i);
        let u = up_weights(params.panels, params.rows, params.k4, block, i);
        let used = select(4u, params.used, i + 1u == params.k4);
        for (var c = 0u; c < COLS; c++) {
            let v = masked(x[min(column + c, n - 1u) * params.k4 + i], used);
            gate_acc[c] = fold(gate_acc[c], g, v);
            up_acc[c] = fold(up_acc[c], u, v);
        }
    }
    let c = min(lane.index / 4u, COLS - 1u);
    reduce(&gate_acc, lane);
    var g = total(lane.index % 4u, c, lane);
    workgroupBarrier();
    reduce(&up_acc, lane);
    var u = total(lane.index % 4u, c, lane);
    let line = column + c;
    let local = block * 4u + lane.index % 4u;
    if lane.index < COLS * 4u && line < n && local < params.rows {
        let output = params.first + local;
        if params.biased != 0u {
            g += bias[output];
            u += bias[params.outputs + output];
        }
        let row = step_row(row_index(line, params.extent));
        g = activate(params.function, add_lora(g, output, line, row));
        u = add_lora(u, params.outputs + output, line, row);
        y[line * params.stride + output] = g * u;
        values[c * MOST + at + lane.index % 4u] = g * u;
    }
    workgroupBarrier();
}

@compute @workgroup_size(64)
fn main(lane: Lane) {
    let n = generated(params.extent);
    let column_blocks = (n + COLS - 1u) / COLS;
    let column = group_index(lane) % column_blocks * COLS;
    let begin = group_index(lane) / column_blocks * params.blocks;
    if begin * 4u >= params.rows {
        return;
    }
    let end = min(begin + params.blocks, (params.rows + 3u) / 4u);
    for (var block = begin; block < end; block++) {
        four(block, (block - begin) * 4u, column, lane);
    }
    let first = params.first + begin * 4u;
    let outputs = min(MOST, params.rows - begin * 4u);
    let lines = min(COLS, n - column);
    carry(Carried(column, lines, params.extent, first / MOST, first, outputs, params.outputs, MOST), lane);
}
