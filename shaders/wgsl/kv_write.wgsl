// K and V to the cache at the row's sequence and position.
// Grid: one workgroup per row and key head. Bound by latency.

import package::shared::cache::{Cache, PAGE, Quad, block, elsewhere, quads, scales_at};
import package::shared::lane::{Lane, LANES, group_index};
import package::shared::step::{ROWS, count, step_row};
import package::shared::store::{magnitude, quad, scale_of, scale_word};

struct Params {
    cache: Cache,
    stride: u32, // elements between rows of k and v
}

@group(1) @binding(0) var<uniform> params: Params;
@group(1) @binding(1) var<storage, read> k: array<f32>;              // [n, stride]
@group(1) @binding(2) var<storage, read> v: array<f32>;              // [n, stride]
@group(1) @binding(4) var<storage, read_write> k_cache: array<Quad>; // [pages, heads, block]
@group(1) @binding(5) var<storage, read_write> v_cache: array<Quad>; // [pages, heads, block]

// Elements from 4 i on of the head that begins at `from_at`, of k (0) or v (1); zeros behind it.
fn elements(side: u32, from_at: u32, i: u32) -> vec4f {
    var e = vec4f();
    for (var j = 0u; j < min(4u, params.cache.head_dim - 4u * i); j++) {
        if side == 0u {
            e[j] = k[from_at + 4u * i + j];
        } else {
            e[j] = v[from_at + 4u * i + j];
        }
    }
    return e;
}

@compute @workgroup_size(64)
fn main(lane: Lane) {
    let cache = params.cache;
    let line = group_index(lane) / cache.kv_heads;
    let head = group_index(lane) % cache.kv_heads;
    if line >= count(ROWS) || elsewhere(cache, head) {
        return;
    }
    let row = step_row(line);
    let own = block(cache, head, row.sequence, row.position);
    let from_at = line * params.stride + head * cache.head_dim;
    let to = own + row.position % PAGE * quads(cache);
    var scales = vec2f();
    @if(bytes)
    for (var side = 0u; side < 2u; side++) {
        var largest = 0.0;
        for (var i = lane.index; i < quads(cache); i += LANES) {
            largest = max(largest, magnitude(elements(side, from_at, i)));
        }
        scales[side] = scale_of(largest, lane);
    }
    @if(bytes)
    if lane.index == 0u {
        k_cache[own + scales_at(cache) + row.position % PAGE] = scale_word(scales.x);
        v_cache[own + scales_at(cache) + row.position % PAGE] = scale_word(scales.y);
    }
    for (var i = lane.index; i < quads(cache); i += LANES) {
        k_cache[to + i] = quad(elements(0u, from_at, i), scales.x);
        v_cache[to + i] = quad(elements(1u, from_at, i), scales.y);
    }
}
