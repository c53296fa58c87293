// y = x with the first 2 * pairs elements of every head rotated by the row's position.
// Grid: one workgroup per row and head. Bound by latency.

import package::shared::lane::{Lane, LANES, group_index};
import package::shared::rotate::{partner, rotated};
import package::shared::step::{ROWS, count, step_row};

struct Params {
    heads: u32,
    head_dim: u32,
    stride: u32,    // elements between rows
    pairs: u32,
    positions: u32, // of the table of angles
}

@group(1) @binding(0) var<uniform> params: Params;
@group(1) @binding(1) var<storage, read> x: array<f32>;       // [n, stride]
@group(1) @binding(2) var<storage, read_write> y: array<f32>; // [n, stride]

@compute @workgroup_size(64)
fn main(lane: Lane) {
    let line = group_index(lane) / params.heads;
    if line >= count(ROWS) {
        return;
    }
    let row = step_row(line);
    let begin = line * params.stride + group_index(lane) % params.heads * params.head_dim;
    for (var i = lane.index; i < params.head_dim; i += LANES) {
        let other = x[begin + partner(i, params.pairs)];
        y[begin + i] = rotated(x[begin + i], other, i, row, params.pairs, params.positions);
    }
}
