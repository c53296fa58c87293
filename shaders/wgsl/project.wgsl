// y = f(W x + b + B t) + r.
// Grid: one workgroup per 4 outputs and COLS rows of x; lanes split the inputs. Bound by reading W.

import package::shared::dots::{COLS, Sums, fold, masked, reduce, total};
import package::shared::functions::activate;
import package::shared::lane::{Lane, LANES, group_index};
import package::shared::lora::add_lora;
import package::shared::step::{count, row_index, step_row};
import package::shared::panels::{Panels, codes_at, decode, offsets_at, scales_at};
import package::shared::weights::{Packed, unpack};

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
@group(1) @binding(1) var<storage, read> weight: array<Packed>; // [rows, k4], or panels
@group(1) @binding(2) var<storage, read> x: array<vec4f>;       // [n, k4]
@group(1) @binding(3) var<storage, read> bias: array<f32>;      // [outputs of W]
@group(1) @binding(4) var<storage, read> r: array<f32>;         // [n, stride]
@group(1) @binding(5) var<storage, read_write> y: array<f32>;   // [n, stride]

// Elements 4 i .. 4 i + 3 of four weight rows, as columns.
@if(nibbles || bytes)
fn weights(block: u32, i: u32) -> mat4x4f {
    let p = params.panels;
    let scales = weight[scales_at(p, block, i)];
    return decode(p, weight[codes_at(p, block, i)], scales, weight[offsets_at(p, block, i)], block, i);
}

@if(f32 || f16 || bf16)
fn weights(block: u32, i: u32) -> mat4x4f {
    let rows = min(vec4u(block * 4u) + vec4u(0u, 1u, 2u, 3u), vec4u(params.rows - 1u)) * params.k4 + i;
    return transpose(mat4x4f(
        unpack(weight[rows.x]), unpack(weight[rows.y]), unpack(weight[rows.z]), unpack(weight[rows.w])));
}

@compute @workgroup_size(64)
fn main(lane: Lane) {
    let n = count(params.extent);
    let column_blocks = (n + COLS - 1u) / COLS;
    let column = group_index(lane) % column_blocks * COLS;
    let block = group_index(lane) / column_blocks;
    if block * 4u >= params.rows {
        return;
    }
    var acc: Sums;
    for (var i = lane.index; i < params.k4; i += LANES) {
        let w = weights(block, i);
        let used = select(4u, params.used, i + 1u == params.k4);
        for (var c = 0u; c < COLS; c++) {
            acc[c] = fold(acc[c], w, masked(x[min(column + c, n - 1u) * params.k4 + i], used));
        }
    }
    reduce(&acc, lane);
    let line = column + lane.index / 4u;
    let local = block * 4u + lane.index % 4u;
    if lane.index >= COLS * 4u || line >= n || local >= params.rows {
        return;
    }
    let output = params.first + local;
    var value = total(lane.index % 4u, lane.index / 4u, lane);
    if params.biased != 0u {
        value += bias[output];
    }
    value = activate(params.function, add_lora(value, output, line, step_row(row_index(line, params.extent))));
    if params.residual != 0u {
        value += r[line * params.stride + output];
    }
    y[line * params.stride + output] = value;
}
