// K and V to the cache at the row's sequence and position.
// Grid: one workgroup per row and key head. Bound by latency.

import package::shared::cache::{Cache, cell, cell_stride};
import package::shared::lane::{Lane, LANES, group_index};
import package::shared::step::{ROWS, count, step_row};

struct Params {
    cache: Cache,
    stride: u32, // elements between rows of k and v
}

@group(1) @binding(0) var<uniform> params: Params;
@group(1) @binding(1) var<storage, read> k: array<f32>;             // [n, stride]
@group(1) @binding(2) var<storage, read> v: array<f32>;             // [n, stride]
@group(1) @binding(4) var<storage, read_write> k_cache: array<f32>; // [cells, positions, head_dim padded]
@group(1) @binding(5) var<storage, read_write> v_cache: array<f32>; // [cells, positions, head_dim padded]

@compute @workgroup_size(64)
fn main(lane: Lane) {
    let cache = params.cache;
    let line = group_index(lane) / cache.kv_heads;
    let head = group_index(lane) % cache.kv_heads;
    if line >= count(ROWS) {
        return;
    }
    let row = step_row(line);
    let own = cell(cache, head, row.sequence);
    if own >= cache.cells {
        return;
    }
    let from_at = line * params.stride + head * cache.head_dim;
    let to = (own * cache.positions + row.position) * cell_stride(cache);
    for (var i = lane.index; i < cache.head_dim; i += LANES) {
        k_cache[to + i] = k[from_at + i];
        v_cache[to + i] = v[from_at + i];
    }
}
