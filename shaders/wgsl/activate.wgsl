// y = f(x), or f(x) * up.
// Grid: one invocation per 4 elements. Bound by reading x.

import package::shared::functions::activate;
import package::shared::lane::{Lane, LANES, group_index};
import package::shared::step::count;

struct Params {
    k4: u32,       // vec4s of a row
    extent: u32,
    function: u32, // f
    gated: u32,
}

@group(1) @binding(0) var<uniform> params: Params;
@group(1) @binding(1) var<storage, read> x: array<vec4f>;       // [n, k4]
@group(1) @binding(2) var<storage, read> up: array<vec4f>;      // [n, k4]
@group(1) @binding(3) var<storage, read_write> y: array<vec4f>; // [n, k4]

@compute @workgroup_size(64)
fn main(lane: Lane) {
    let at = group_index(lane) * LANES + lane.index;
    if at >= count(params.extent) * params.k4 {
        return;
    }
    let f = params.function;
    var value = vec4f(activate(f, x[at].x), activate(f, x[at].y), activate(f, x[at].z), activate(f, x[at].w));
    if params.gated != 0u {
        value *= up[at];
    }
    y[at] = value;
}
