// y = a + b.
// Grid: one invocation per 4 elements. Bound by reading a and b.

import package::shared::lane::{Lane, LANES, group_index};
import package::shared::step::count;

struct Params {
    k4: u32, // vec4s of a row
    extent: u32,
}

@group(1) @binding(0) var<uniform> params: Params;
@group(1) @binding(1) var<storage, read> a: array<vec4f>;       // [n, k4]
@group(1) @binding(2) var<storage, read> b: array<vec4f>;       // [n, k4]
@group(1) @binding(3) var<storage, read_write> y: array<vec4f>; // [n, k4]

@compute @workgroup_size(64)
fn main(lane: Lane) {
    let at = group_index(lane) * LANES + lane.index;
    if at < count(params.extent) * params.k4 {
        y[at] = a[at] + b[at];
    }
}
