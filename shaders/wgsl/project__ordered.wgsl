// y = x with its elements in the order of W's columns, which act-order has sorted by group: the launch before that of W y.
// Grid: one invocation per element. Bound by latency.

import package::shared::lane::{Lane, LANES, group_index};
import package::shared::step::count;

struct Params {
    width: u32,  // elements of a row
    stride: u32, // elements between rows
    extent: u32,
}

@group(1) @binding(0) var<uniform> params: Params;
@group(1) @binding(1) var<storage, read> inputs: array<u32>;  // [width]: which element of x each column multiplies
@group(1) @binding(2) var<storage, read> x: array<f32>;       // [n, stride]
@group(1) @binding(3) var<storage, read_write> y: array<f32>; // [n, stride]

@compute @workgroup_size(64)
fn main(lane: Lane) {
    let at = group_index(lane) * LANES + lane.index;
    let column = at % params.stride;
    if at < count(params.extent) * params.stride && column < params.width {
        y[at] = x[at - column + inputs[column]];
    }
}
