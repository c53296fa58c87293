// y = x of the sampled rows.
// Grid: one workgroup per sample. Bound by latency.

import package::shared::lane::{Lane, LANES, group_index};
import package::shared::step::{SAMPLES, count, row_index};

struct Params {
    k4: u32, // vec4s of a row
}

@group(1) @binding(0) var<uniform> params: Params;
@group(1) @binding(1) var<storage, read> x: array<vec4f>;       // [rows, k4]
@group(1) @binding(2) var<storage, read_write> y: array<vec4f>; // [samples, k4]

@compute @workgroup_size(64)
fn main(lane: Lane) {
    let line = group_index(lane);
    if line >= count(SAMPLES) {
        return;
    }
    let from_line = row_index(line, SAMPLES);
    for (var i = lane.index; i < params.k4; i += LANES) {
        y[line * params.k4 + i] = x[from_line * params.k4 + i];
    }
}
