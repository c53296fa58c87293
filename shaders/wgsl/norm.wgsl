// Layer: y = (x - mean) / sqrt(mean((x - mean)^2) + eps) * weight + bias; RMS: the same with mean = 0 and no bias.
// Grid: one workgroup per row and group (a group is normalized on its own). Bound by latency: two passes over a row.

import package::shared::lane::{Lane, LANES, group_index};
import package::shared::reduce::sum;
import package::shared::step::count;

struct Params {
    width: u32,  // of a group
    groups: u32, // in a row
    stride: u32, // elements between rows
    extent: u32,
    centered: u32,
    weighted: u32,
    biased: u32,
    eps: f32,
}

@group(1) @binding(0) var<uniform> params: Params;
@group(1) @binding(1) var<storage, read> x: array<f32>;       // [n, stride]
@group(1) @binding(2) var<storage, read> weight: array<f32>;  // [width]
@group(1) @binding(3) var<storage, read> bias: array<f32>;    // [width]
@group(1) @binding(4) var<storage, read_write> y: array<f32>; // [n, stride]

@compute @workgroup_size(64)
fn main(lane: Lane) {
    let index = group_index(lane);
    if index >= count(params.extent) * params.groups {
        return;
    }
    let begin = index / params.groups * params.stride + index % params.groups * params.width;
    let width = f32(params.width);
    var mean = 0.0;
    if params.centered != 0u {
        var total = 0.0;
        for (var i = lane.index; i < params.width; i += LANES) {
            total += x[begin + i];
        }
        mean = sum(total, lane, LANES) / width;
    }
    var squares = 0.0;
    for (var i = lane.index; i < params.width; i += LANES) {
        let d = x[begin + i] - mean;
        squares = fma(d, d, squares);
    }
    let scale = 1.0 / sqrt(sum(squares, lane, LANES) / width + params.eps);
    for (var i = lane.index; i < params.width; i += LANES) {
        var value = (x[begin + i] - mean) * scale;
        if params.weighted != 0u {
            value *= weight[i];
        }
        if params.biased != 0u {
            value += bias[i];
        }
        y[begin + i] = value;
    }
}
