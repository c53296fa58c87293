// A row's q, k, v heads: B t is added; RMS norm of each q and k head if there is one, rotation of q and k; q out, k and v to the cache.
// Grid: one workgroup per row and head (q heads, k heads, v heads). Bound by latency.

import package::shared::cache::{Cache, cell, cell_stride};
import package::shared::lane::{Lane, LANES, group_index};
import package::shared::lora::add_lora;
import package::shared::reduce::sum;
import package::shared::rotate::{partner, rotated};
import package::shared::step::{ROWS, count, step_row};

@id(0) override HEAD_DIM: u32; // padded to 4

struct Params {
    cache: Cache,
    heads: u32,     // of q
    stride: u32,    // elements between rows of qkv
    q_stride: u32,  // elements between rows of q
    pairs: u32,     // 0: no rotation
    positions: u32, // of the table of angles
    q_norm: u32,    // whether there is one
    k_norm: u32,
    eps: f32,
}

@group(1) @binding(0) var<uniform> params: Params;
@group(1) @binding(1) var<storage, read> qkv: array<f32>;           // [n, stride]
@group(1) @binding(2) var<storage, read> norms: array<f32>;         // [q weight, k weight; head_dim]
@group(1) @binding(4) var<storage, read_write> k_cache: array<f32>; // [cells, positions, head_dim padded]
@group(1) @binding(5) var<storage, read_write> v_cache: array<f32>; // [cells, positions, head_dim padded]
@group(1) @binding(9) var<storage, read_write> q: array<f32>;       // [n, q_stride]

var<workgroup> values: array<f32, HEAD_DIM>;

// What multiplies element i of a head: norm 0 is q's, 1 is k's, others are none.
fn weight(norm: u32, scale: f32, i: u32) -> f32 {
    if (norm == 0u && params.q_norm != 0u) || (norm == 1u && params.k_norm != 0u) {
        return scale * norms[norm * params.cache.head_dim + i];
    }
    return 1.0;
}

@compute @workgroup_size(64)
fn main(lane: Lane) {
    let cache = params.cache;
    let all_heads = params.heads + 2u * cache.kv_heads;
    let line = group_index(lane) / all_heads;
    let head = group_index(lane) % all_heads;
    if line >= count(ROWS) {
        return;
    }
    let row = step_row(line);
    let begin = line * params.stride + head * cache.head_dim;
    // 0: q, 1: k, 2: v
    let kind = select(select(2u, 1u, head < params.heads + cache.kv_heads), 0u, head < params.heads);
    let pairs = select(params.pairs, 0u, kind == 2u);
    let own = cell(cache, head - params.heads - select(0u, cache.kv_heads, kind == 2u), row.sequence);
    // q is left to the dispatch that has the first cells.
    if select(own >= cache.cells, cache.first > 0u, kind == 0u) {
        return;
    }
    var squares = 0.0;
    for (var i = lane.index; i < cache.head_dim; i += LANES) {
        let value = add_lora(qkv[begin + i], head * cache.head_dim + i, line, row);
        values[i] = value;
        squares = fma(value, value, squares);
    }
    // The sum's barriers also lie between the values and their readers.
    let scale = 1.0 / sqrt(sum(squares, lane, LANES) / f32(cache.head_dim) + params.eps);
    let to = (own * cache.positions + row.position) * cell_stride(cache);
    for (var i = lane.index; i < cache.head_dim; i += LANES) {
        let j = partner(i, pairs);
        let other = values[j] * weight(kind, scale, j);
        let value = rotated(values[i] * weight(kind, scale, i), other, i, row, pairs, params.positions);
        switch kind {
            case 0u: { q[line * params.q_stride + head * cache.head_dim + i] = value; }
            case 1u: { k_cache[to + i] = value; }
            default: { v_cache[to + i] = value; }
        }
    }
}
