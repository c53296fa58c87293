// y = x + B t for active rows, x for others.
// Grid: one invocation per output. Bound by reading B. Where the B pool is split, each further dispatch goes on from y.

import package::shared::lane::{Lane, LANES, group_index};
import package::shared::lora::add_lora;
import package::shared::step::{count, row_index, step_row};

struct Params {
    width: u32,
    stride: u32, // elements between rows of x and y
    extent: u32,
    further: u32,
}

@group(1) @binding(0) var<uniform> params: Params;
@group(1) @binding(1) var<storage, read> x: array<f32>;       // [n, stride]
@group(1) @binding(2) var<storage, read_write> y: array<f32>; // [n, stride]

@compute @workgroup_size(64)
fn main(lane: Lane) {
    let index = group_index(lane) * LANES + lane.index;
    let line = index / params.width;
    let output = index % params.width;
    if line >= count(params.extent) {
        return;
    }
    let at = line * params.stride + output;
    var value = x[at];
    if params.further != 0u {
        value = y[at];
    }
    y[at] = add_lora(value, output, line, step_row(row_index(line, params.extent)));
}
