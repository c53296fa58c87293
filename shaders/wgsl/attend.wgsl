// y = softmax(scale * q K^T) V over the positions that the row may see, by pages
// with a running maximum (Milakov & Gimelshein 2018): a row's result depends on its own history alone.
// t = A y of the site that is carried, one partial sum per head.
// Grid: one workgroup per row and q head; lanes split positions for q K^T, head elements for the sum. Bound by reading K, V.

import package::shared::cache::{Cache, PAGE, block, elsewhere};
import package::shared::carry::{Carried, carry, next, values};
import package::shared::kv::{HEAD_DIM, key_quad, key_scale, value_at, value_scale};
import package::shared::lane::{Lane, LANES, group_index};
import package::shared::reduce::{maximum, sum};
import package::shared::step::{ROWS, count, step_row};

struct Params {
    cache: Cache,
    heads: u32,  // of q
    stride: u32, // elements between rows of q and y
    window: u32, // positions that a row sees, the own one included
    scale: f32,
}

@group(1) @binding(0) var<uniform> params: Params;
@group(1) @binding(1) var<storage, read> q: array<f32>;       // [n, stride]
@group(1) @binding(4) var<storage, read_write> y: array<f32>; // [n, stride]

const LEAST = -3.4e38;

var<workgroup> query: array<f32, HEAD_DIM>;
var<workgroup> weights: array<f32, LANES>;
var<workgroup> acc: array<f32, HEAD_DIM>; // element i belongs to lane i % LANES

fn score(block: u32, offset: u32) -> f32 {
    var s = 0.0;
    for (var i = 0u; i < HEAD_DIM; i += 4u) {
        let k = key_quad(block, offset, i / 4u);
        s = fma(query[i], k.x, s);
        s = fma(query[i + 1u], k.y, s);
        s = fma(query[i + 2u], k.z, s);
        s = fma(query[i + 3u], k.w, s);
    }
    return s * key_scale(block, offset) * params.scale;
}

@compute @workgroup_size(64)
fn main(lane: Lane) {
    let cache = params.cache;
    let line = group_index(lane) / params.heads;
    let head = group_index(lane) % params.heads;
    if line >= count(ROWS) {
        return;
    }
    let kv_head = head / (params.heads / cache.kv_heads);
    if elsewhere(cache, kv_head) {
        return;
    }
    let row = step_row(line);
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
    for (var tile = start / PAGE * PAGE; tile < end; tile += PAGE) {
        let own = block(cache, kv_head, row.sequence, tile);
        let position = tile + lane.index;
        let seen = position >= start && position < end;
        var s = LEAST;
        if seen {
            s = score(own, lane.index);
        }
        let new_top = max(top, maximum(s, lane, LANES));
        let weight = select(0.0, exp(s - new_top), seen);
        let shrink = exp(top - new_top);
        weights[lane.index] = weight;
        if seen {
            weights[lane.index] = weight * value_scale(own, lane.index);
        }
        total = fma(total, shrink, sum(weight, lane, LANES));
        top = new_top;
        for (var i = lane.index; i < cache.head_dim; i += LANES) {
            var value = acc[i] * shrink;
            for (var p = max(tile, start) - tile; p < min(PAGE, end - tile); p++) {
                value = fma(weights[p], value_at(own, p, i), value);
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
    carry(Carried(line, 1u, ROWS, head, head * cache.head_dim, cache.head_dim, width, 0u), lane, LANES);
}
