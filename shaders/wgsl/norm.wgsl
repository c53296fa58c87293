// Layer: y = (x - mean) / sqrt(mean((x - mean)^2) + eps) * weight + bias; RMS: the same with mean = 0 and no bias.
// t = A y of the site that is carried, for rows that have LoRA there.
// Grid: one workgroup per row and group (a group is normalized on its own), then one per row and rank row of that site.
// Bound by latency: two passes over a row.

import package::shared::a_pool::{a_element, a_entry};
import package::shared::carry::{next, t_out, t_out_stride};
import package::shared::lane::{Lane, LANES, group_index};
import package::shared::reduce::sum;
import package::shared::step::{count, lora_on, row_index, step_row};

@id(0) override CENTERED: bool;
@id(1) override WEIGHTED: bool;
@id(2) override BIASED: bool;

struct Params {
    width: u32,  // of a group
    groups: u32, // in a row
    stride: u32, // elements between rows
    extent: u32,
    eps: f32,
}

@group(1) @binding(0) var<uniform> params: Params;
@group(1) @binding(1) var<storage, read> x: array<f32>;       // [n, stride]
@group(1) @binding(2) var<storage, read> weight: array<f32>;  // [width]
@group(1) @binding(3) var<storage, read> bias: array<f32>;    // [width]
@group(1) @binding(4) var<storage, read_write> y: array<f32>; // [n, stride]

// Mean, and 1 / the deviation, of the elements from `begin` on.
fn moments(begin: u32, lane: Lane) -> vec2f {
    let width = f32(params.width);
    var mean = 0.0;
    if CENTERED {
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
    return vec2f(mean, 1.0 / sqrt(sum(squares, lane, LANES) / width + params.eps));
}

fn normed(begin: u32, i: u32, moments: vec2f) -> f32 {
    var value = (x[begin + i] - moments.x) * moments.y;
    if WEIGHTED {
        value *= weight[i];
    }
    if BIASED {
        value += bias[i];
    }
    return value;
}

fn rank_row(index: u32, lane: Lane) {
    let carried = next.parts * next.rank;
    if index >= count(params.extent) * carried {
        return;
    }
    let line = index / carried;
    let output = index % carried;
    let row = step_row(row_index(line, params.extent));
    if !lora_on(row, next.layer) {
        return;
    }
    let index_of_entry = output / next.rank * next.slots + row.slot;
    let entry = a_entry(index_of_entry);
    let r = output % next.rank;
    if r >= entry.rank {
        return;
    }
    let begin = line * params.stride;
    let moments = moments(begin, lane);
    let a = (index_of_entry * next.rank + r) * params.stride;
    var acc = 0.0;
    for (var i = lane.index; i < params.width; i += LANES) {
        acc = fma(a_element(next.head, a + i), normed(begin, i, moments), acc);
    }
    let total = sum(acc, lane, LANES);
    if lane.index == 0u {
        t_out[line * t_out_stride() + output] = total * entry.scale;
    }
}

@compute @workgroup_size(64)
fn main(lane: Lane) {
    let index = group_index(lane);
    let groups = count(params.extent) * params.groups;
    if index >= groups {
        rank_row(index - groups, lane);
        return;
    }
    let begin = index / params.groups * params.stride + index % params.groups * params.width;
    let moments = moments(begin, lane);
    for (var i = lane.index; i < params.width; i += LANES) {
        y[begin + i] = normed(begin, i, moments);
    }
}
