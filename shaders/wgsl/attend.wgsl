// y = softmax(scale * q K^T) V over the positions that the row may see, by tiles at absolute multiples of 64 positions
// with a running maximum (Milakov & Gimelshein 2018): a row's result depends on its own history alone.
// t = A y of the site that is carried, one partial sum per head.
// Grid: one workgroup per row and q head; lanes split positions for q K^T, head elements for the sum. Bound by reading K, V.

import package::shared::cache::{Cache, cell, cell_stride};
import package::shared::carry::{Carried, carry, next, values};
import package::shared::lane::{Lane, LANES, group_index};
import package::shared::reduce::{maximum, sum};
import package::shared::step::{ROWS, count, step_row};

@id(0) override HEAD_DIM: u32; // padded to 4

struct Params {
    cache: Cache,
    heads: u32,  // of q
    stride: u32, // elements between rows of q and y
    window: u32, // positions that a row sees, the own one included
    scale: f32,
}

@group(1) @binding(0) var<uniform> params: Params;
@group(1) @binding(1) var<storage, read> q: array<f32>;         // [n, stride]
@group(1) @binding(2) var<storage, read> k_cache: array<vec4f>; // [cells, positions, head_dim padded]
@group(1) @binding(3) var<storage, read> v_cache: array<f32>;   // [cells, positions, head_dim padded]
@group(1) @binding(4) var<storage, read_write> y: array<f32>;   // [n, stride]

const LEAST = -3.4e38;

var<workgroup> query: array<f32, HEAD_DIM>;
var<workgroup> weights: array<f32, LANES>;
var<workgroup> acc: array<f32, HEAD_DIM>; // element i belongs to lane i % LANES

fn score(at: u32) -> f32 {
    var s = 0.0;
    for (var i = 0u; i < HEAD_DIM; i += 4u) {
        let k = k_cache[(at * HEAD_DIM + i) / 4u];
        s = fma(query[i], k.x, s);
        s = fma(query[i + 1u], k.y, s);
        s = fma(query[i + 2u], k.z, s);
        s = fma(query[i + 3u], k.w, s);
    }
    return s * params.scale;
}

@compute @workgroup_size(64)
fn main(lane: Lane) {
    let cache = params.cache;
    let line = group_index(lane) / params.heads;
    let head = group_index(lane) % params.heads;
    if line >= count(ROWS) {
        return;
    }
    let row = step_row(line);
    let own = cell(cache, head / (params.heads / cache.kv_heads), row.sequence);
    if own >= cache.cells {
        return;
    }
    let begin = line * params.stride + head * cache.head_dim;
    for (var i = lane.index; i < HEAD_DIM; i += LANES) {
        query[i] = 0.0;
        if i < cache.head_dim {
            query[i] = q[begin + i];
        }
        acc[i] = 0.0;
    }
    workgroupBarrier();
    let end = row.position + 1u;
    let start = end - min(end, params.window);
    var top = LEAST;
    var total = 0.0;
    for (var tile = start / LANES * LANES; tile < end; tile += LANES) {
        let position = tile + lane.index;
        let seen = position >= start && position < end;
        var s = LEAST;
        if seen {
            s = score(own * cache.positions + position);
        }
        let new_top = max(top, maximum(s, lane, LANES));
        let weight = select(0.0, exp(s - new_top), seen);
        let shrink = exp(top - new_top);
        weights[lane.index] = weight;
        total = fma(total, shrink, sum(weight, lane, LANES));
        top = new_top;
        for (var i = lane.index; i < cache.head_dim; i += LANES) {
            var value = acc[i] * shrink;
            for (var p = max(tile, start); p < min(tile + LANES, end); p++) {
                value = fma(weights[p - tile], v_cache[(own * cache.positions + p) * HEAD_DIM + i], value);
            }
            acc[i] = value;
        }
        workgroupBarrier();
    }
    for (var i = lane.index; i < cache.head_dim; i += LANES) {
        let value = acc[i] / total;
        y[begin + i] = value;
        if next.parts != 0u {
            values[i] = value;
        }
    }
    workgroupBarrier();
    let width = params.heads * cache.head_dim;
    carry(Carried(line, 1u, ROWS, head, head * cache.head_dim, cache.head_dim, width, 0u), lane);
}
