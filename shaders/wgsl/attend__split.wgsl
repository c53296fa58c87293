// y = softmax(scale * q K^T) V over the positions that a row may see, in chunks at absolute multiples of 128 that are
// folded in their order. t = A y of the site that is carried, one partial sum per head.
// Grid: one workgroup per row, HEADS q heads that share a k head, and chunk (or for all chunks, where the step says 1);
// the last one folds. Lanes split positions for q K^T, head elements for the sum. Bound by reading K, V.

import package::shared::cache::{Cache, cell};
import package::shared::carry::{Carried, carry, next, values};
import package::shared::chunks::{CHUNK, LEAST, MOST, PAD, SHARE, Softmax, factors, fold, folded, scores, weigh};
import package::shared::handed::{ELEMENTS, HEADS, HEAD_DIM, acc, hand_in, take};
import package::shared::lane::{Lane, LANES, group_index};
import package::shared::step::{ROWS, chunks, count, step_row};

struct Params {
    cache: Cache,
    heads: u32,  // of q
    stride: u32, // elements between rows of q and y
    window: u32, // positions that a row sees, the own one included
    scale: f32,
    blocks: u32, // of q heads that share a k head
}

@group(1) @binding(0) var<uniform> params: Params;
@group(1) @binding(1) var<storage, read> q: array<f32>;          // [n, stride]
@group(1) @binding(2) var<storage, read> k_cache: array<vec4f>;  // [cells, positions, head_dim padded]
@group(1) @binding(3) var<storage, read> v_cache: array<f32>;    // [cells, positions, head_dim padded]
@group(1) @binding(4) var<storage, read_write> y: array<f32>;    // [n, stride]

var<workgroup> query: array<vec4f, ELEMENTS / 4u>; // [HEADS, HEAD_DIM]

// Where the head's elements of a position begin.
fn place(own: u32, position: u32) -> u32 {
    return (own * params.cache.positions + position) * HEAD_DIM;
}

// The first `used` of four elements of q, then zeros.
fn elements(at: u32, used: u32) -> vec4f {
    var v = vec4f();
    for (var i = 0u; i < min(used, 4u); i++) {
        v[i] = q[at + i];
    }
    return v;
}

// The scores of the chunk at `at`, of which positions seen.x .. seen.y are seen.
fn score(own: u32, at: u32, seen: vec2u, lane: Lane) {
    for (var i = lane.index; i < CHUNK; i += LANES) {
        let inside = at + i >= seen.x && at + i < seen.y;
        let key = place(own, select(seen.x, at + i, inside)) / 4u;
        var s = array<f32, MOST>();
        for (var e = 0u; e < HEAD_DIM / 4u; e++) {
            let k = k_cache[key + e];
            for (var h = 0u; h < HEADS; h++) {
                let v = query[h * HEAD_DIM / 4u + e];
                s[h] = fma(v.w, k.w, fma(v.z, k.z, fma(v.y, k.y, fma(v.x, k.x, s[h]))));
            }
        }
        for (var h = 0u; h < HEADS; h++) {
            scores[h * PAD + i] = select(LEAST, s[h] * params.scale, inside);
        }
    }
    workgroupBarrier();
}

// Folds the weighted sums of the values seen.x .. seen.y in.
fn add_values(own: u32, seen: vec2u, lane: Lane) {
    for (var e = lane.index; e < HEAD_DIM; e += LANES) {
        var sum = array<f32, MOST>(); // naga does not clear variables in loops
        for (var p = seen.x; p < seen.y; p++) {
            let v = v_cache[place(own, p) + e];
            for (var h = 0u; h < HEADS; h++) {
                sum[h] = fma(scores[h * PAD + p % CHUNK], v, sum[h]);
            }
        }
        for (var h = 0u; h < HEADS; h++) {
            acc[h * HEAD_DIM + e] = folded(acc[h * HEAD_DIM + e], sum[h], h);
        }
    }
    workgroupBarrier();
}

// y, and the carried sums, of the workgroup's heads from `first` on.
fn finish(total: f32, line: u32, first: u32, heads: u32, lane: Lane) {
    if lane.index % SHARE == 0u {
        factors[lane.index / SHARE].x = total;
    }
    workgroupBarrier();
    let head_dim = params.cache.head_dim;
    for (var h = 0u; h < heads; h++) {
        let at = (first + h) * head_dim;
        for (var i = lane.index; i < head_dim; i += LANES) {
            let value = acc[h * HEAD_DIM + i] / factors[h].x;
            y[line * params.stride + at + i] = value;
            if next.parts != 0u {
                values[i] = value;
            }
        }
        workgroupBarrier();
        carry(Carried(line, 1u, ROWS, first + h, at, head_dim, params.heads * head_dim, 0u), lane, LANES);
    }
}

@compute @workgroup_size(64)
fn main(lane: Lane) {
    let blocks = params.cache.kv_heads * params.blocks;
    let block = group_index(lane) / chunks();
    let line = block / blocks;
    if line >= count(ROWS) {
        return;
    }
    let kv_head = block % blocks / params.blocks;
    let own = cell(params.cache, kv_head, step_row(line).sequence);
    let end = step_row(line).position + 1u;
    let begin = end - min(end, params.window);
    let first = begin / CHUNK;
    let further = (end - 1u) / CHUNK - first; // chunks
    let index = group_index(lane) % chunks();
    if own >= params.cache.cells || index > further {
        return;
    }
    let group = params.heads / params.cache.kv_heads;
    let skipped = block % params.blocks * HEADS; // heads of the group
    let head = kv_head * group + skipped;
    let head_dim = params.cache.head_dim;
    for (var i = lane.index; i < HEADS * HEAD_DIM; i += LANES) {
        acc[i] = 0.0;
        if i % 4u == 0u {
            let used = select(0u, head_dim - i % HEAD_DIM, skipped + i / HEAD_DIM < group);
            query[i / 4u] = elements(line * params.stride + (head + i / HEAD_DIM) * head_dim + i % HEAD_DIM, used);
        }
    }
    workgroupBarrier();
    var softmax = Softmax(LEAST, 0.0);
    for (var i = index; i <= select(further, index, chunks() > 1u); i++) {
        let at = (first + i) * CHUNK;
        let seen = vec2u(max(begin, at), min(end, at + CHUNK));
        score(own, at, seen, lane);
        softmax = fold(softmax, weigh(lane), lane);
        add_values(own, seen, lane);
    }
    if chunks() > 1u && further > 0u {
        if !hand_in(softmax, block * chunks() + index, block, further + 1u, lane) {
            return;
        }
        softmax = Softmax(LEAST, 0.0);
        for (var i = 0u; i <= further; i++) {
            softmax = take(softmax, block * chunks() + i, lane);
        }
    }
    finish(softmax.total, line, head, min(HEADS, group - skipped), lane);
}
