// score = sigmoid(d . relu(U f + b) + e) of the features f of x: its length, mean, maximum, and its distance from frozen
// constants, sqrt(mean(((x - c) s)^2)). Where a row has a gate and its score is not above the threshold, the row's mask bit of
// the layer is cleared: the launches behind this one leave its LoRA out.
// Grid: one workgroup per row. Bound by latency: one pass over a row.

import package::shared::lane::{Lane, LANES, group_index};
import package::shared::reduce::{maximum, sum};
import package::shared::step::ROWS_AT;

struct Params {
    width: u32,
    stride: u32, // elements between rows
    layer: u32,
    hidden: u32, // units of the hidden layer
    threshold: f32,
}

// As in shared/step.wgsl, but written: three vec4u per row from [ROWS_AT] on.
@group(0) @binding(0) var<storage, read_write> step: array<vec4u>;
@group(1) @binding(0) var<uniform> params: Params;
@group(1) @binding(1) var<storage, read> x: array<f32>;       // [n, stride]
@group(1) @binding(2) var<storage, read> weights: array<f32>; // c [width], s [width], U [hidden, 4], b [hidden], d [hidden], e
@group(1) @binding(3) var<storage, read_write> y: array<f32>; // [n, 4]: the score

const NO_INDEX = 0xffffffffu;
const GATED = 8u;

fn features(begin: u32, lane: Lane) -> vec4f {
    var squares = 0.0;
    var total = 0.0;
    var top = -3.4e38;
    var distance = 0.0;
    for (var i = lane.index; i < params.width; i += LANES) {
        let value = x[begin + i];
        squares = fma(value, value, squares);
        total += value;
        top = max(top, value);
        let d = (value - weights[i]) * weights[params.width + i];
        distance = fma(d, d, distance);
    }
    let width = f32(params.width);
    return vec4f(sqrt(sum(squares, lane, LANES)), sum(total, lane, LANES) / width, maximum(top, lane, LANES),
        sqrt(sum(distance, lane, LANES) / width));
}

// Every lane computes it: the hidden layer has few units.
fn score(f: vec4f) -> f32 {
    let up = 2u * params.width;
    let bias = up + 4u * params.hidden;
    let down = bias + params.hidden;
    var logit = weights[down + params.hidden];
    for (var h = 0u; h < params.hidden; h++) {
        let at = up + 4u * h;
        let u = vec4f(weights[at], weights[at + 1u], weights[at + 2u], weights[at + 3u]);
        logit = fma(weights[down + h], max(dot(u, f) + weights[bias + h], 0.0), logit);
    }
    return 1.0 / (1.0 + exp(-logit));
}

@compute @workgroup_size(64)
fn main(lane: Lane) {
    let line = group_index(lane);
    if line >= step[0].x {
        return;
    }
    let value = score(features(line * params.stride, lane));
    if lane.index != 0u {
        return;
    }
    y[line * 4u] = value;
    let row = ROWS_AT + line * 3u;
    let word = params.layer >> 5u;
    let bit = 1u << (params.layer & 31u);
    let on = step[row].w != NO_INDEX && (step[row + 1u][word] & bit) != 0u;
    // By its bits: a compiler may assume that there is no NaN.
    let open = value > params.threshold && (bitcast<u32>(value) & 0x7fffffffu) <= 0x7f800000u;
    if on && (step[row + 2u].x & GATED) != 0u && !open {
        step[row + 1u][word] &= ~bit;
        step[row + 2u].y += 1u;
    }
}
