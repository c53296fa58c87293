// y = f(G x + b_g + B_g t) * (U x + b_u + B_u t).
// t = A y of the site that is carried, one partial sum per workgroup's outputs.
// Grid: one workgroup per 16 outputs (a panel) and COLS rows of x; 4 lanes beside each other have 4 outputs each, the 16
// fours of lanes split the inputs. Bound by reading G and U.

import package::shared::carry::{Carried, carry, values};
import package::shared::dots::{COLS, Sums, fold, masked, partial};
import package::shared::functions::activate;
import package::shared::lane::{Lane, LANES, group_index};
import package::shared::lora::add_lora;
import package::shared::step::{count, row_index, step_row};
import package::shared::panels::{Panels, codes_at, decode, offsets_at, prepare, scales_at};
import package::shared::weights::{Packed, unpack};

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

const OUTPUTS = 16u; // of a workgroup
const DEPTH = 16u;   // lanes that split the inputs of an output

@group(1) @binding(0) var<uniform> params: Params;
@group(1) @binding(1) var<storage, read> gate: array<Packed>; // [rows, k4], or panels
@group(1) @binding(2) var<storage, read> up: array<Packed>;   // [rows, k4]
@group(1) @binding(3) var<storage, read> x: array<vec4f>;     // [n, k4]
@group(1) @binding(4) var<storage, read> bias: array<f32>;    // [2, outputs]
@group(1) @binding(5) var<storage, read_write> y: array<f32>; // [n, stride]

// Elements 4 i .. 4 i + 3 of four rows of G, as columns.
@if(nibbles || bytes)
fn gate_weights(block: u32, i: u32) -> mat4x4f {
    let p = params.panels;
    let scales = gate[scales_at(p, block, i)];
    return decode(p, gate[codes_at(p, block, i)], scales, gate[offsets_at(p, block, i)], block, i);
}

@if(nibbles || bytes)
fn up_weights(block: u32, i: u32) -> mat4x4f {
    let p = params.panels;
    let scales = up[scales_at(p, block, i)];
    return decode(p, up[codes_at(p, block, i)], scales, up[offsets_at(p, block, i)], block, i);
}

@if(f32 || f16 || bf16)
fn gate_weights(block: u32, i: u32) -> mat4x4f {
    let at = places(block, i);
    return transpose(mat4x4f(unpack(gate[at.x]), unpack(gate[at.y]), unpack(gate[at.z]), unpack(gate[at.w])));
}

@if(f32 || f16 || bf16)
fn up_weights(block: u32, i: u32) -> mat4x4f {
    let at = places(block, i);
    return transpose(mat4x4f(unpack(up[at.x]), unpack(up[at.y]), unpack(up[at.z]), unpack(up[at.w])));
}

// Where the vec4s i of four weight rows lie.
fn places(block: u32, i: u32) -> vec4u {
    return min(vec4u(block * 4u) + vec4u(0u, 1u, 2u, 3u), vec4u(params.rows - 1u)) * params.k4 + i;
}

// Hands the lanes' sums to `over_lanes`. A barrier must lie before, and one behind.
fn store(acc: ptr<function, Sums>, lane: Lane) {
    for (var c = 0u; c < COLS; c++) {
        partial[c * LANES + lane.index] = (*acc)[c];
    }
}

// The sum of an output of the workgroup, of COLS times OUTPUTS, over the lanes that have parts of it.
fn over_lanes(index: u32) -> f32 {
    let at = index / OUTPUTS * LANES + index % OUTPUTS / 4u;
    var sum = partial[at][index % 4u];
    for (var i = 1u; i < DEPTH; i++) {
        sum += partial[at + i * 4u][index % 4u];
    }
    return sum;
}

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

@compute @workgroup_size(64)
fn main(lane: Lane) {
    let n = count(params.extent);
    let column_blocks = (n + COLS - 1u) / COLS;
    let column = group_index(lane) % column_blocks * COLS;
    let begin = group_index(lane) / column_blocks * OUTPUTS;
    if begin >= params.rows {
        return;
    }
    @if(nibbles)
    prepare(params.panels, lane.index);
    let block = begin / 4u + lane.index % 4u;
    var gate_acc: Sums;
    var up_acc: Sums;
    for (var i = lane.index / 4u; i < params.k4; i += DEPTH) {
        let g = gate_weights(block, i);
        let u = up_weights(block, i);
        let used = select(4u, params.used, i + 1u == params.k4);
        for (var c = 0u; c < COLS; c++) {
            let v = masked(x[min(column + c, n - 1u) * params.k4 + i], used);
            gate_acc[c] = fold(gate_acc[c], g, v);
            up_acc[c] = fold(up_acc[c], u, v);
        }
    }
    store(&gate_acc, lane);
    workgroupBarrier();
    for (var index = lane.index; index < COLS * OUTPUTS; index += LANES) {
        values[index] = over_lanes(index);
    }
    workgroupBarrier();
    store(&up_acc, lane);
    workgroupBarrier();
    for (var index = lane.index; index < COLS * OUTPUTS; index += LANES) {
        let line = column + index / OUTPUTS;
        let local = begin + index % OUTPUTS;
        if line < n && local < params.rows {
            let value = finish(values[index], over_lanes(index), params.first + local, line);
            y[line * params.stride + params.first + local] = value;
            values[index] = value;
        }
    }
    workgroupBarrier();
    let first = params.first + begin;
    let outputs = min(OUTPUTS, params.rows - begin);
    let lines = min(COLS, n - column);
    carry(Carried(column, lines, params.extent, first / OUTPUTS, first, outputs, params.outputs, OUTPUTS), lane);
}
