// y = x + table[position + offset].
// Grid: one workgroup per row. Bound by latency.

import package::shared::lane::{Lane, LANES, group_index};
import package::shared::step::{ROWS, count, step_row};
import package::shared::weights::{Packed, unpack};

struct Params {
    k4: u32,     // vec4s of a row
    first: u32,  // the first row of this part of the table
    rows: u32,   // and how many; other rows are left to other dispatches
    offset: u32,
}

@group(1) @binding(0) var<uniform> params: Params;
@group(1) @binding(1) var<storage, read> table: array<Packed>;  // [rows, k4]
@group(1) @binding(2) var<storage, read> x: array<vec4f>;       // [n, k4]
@group(1) @binding(3) var<storage, read_write> y: array<vec4f>; // [n, k4]

@compute @workgroup_size(64)
fn main(lane: Lane) {
    let line = group_index(lane);
    if line >= count(ROWS) {
        return;
    }
    let place = step_row(line).position + params.offset;
    let at = place - params.first;
    if place < params.first || at >= params.rows {
        return;
    }
    for (var i = lane.index; i < params.k4; i += LANES) {
        y[line * params.k4 + i] = x[line * params.k4 + i] + unpack(table[at * params.k4 + i]);
    }
}
