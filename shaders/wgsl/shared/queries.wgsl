// A chunk of positions against the queries of up to TOGETHER rows that see the same of it: what is loaded of a key or a
// value serves all of them. How a row is summed does not depend on the others.

import package::shared::cache::{Cache, PAGE, block};
import package::shared::chunks::{CHUNK, LEAST, MOST, PAD, Softmax, fold, folded, scores, weigh};
import package::shared::kv::{HEAD_DIM, key_quad, key_scale, value_at, value_scale};
import package::shared::lane::{Lane, LANES};

@id(1) override HEADS: u32;    // q heads of a workgroup
@id(2) override TOGETHER: u32; // rows: at most MOST heads, and ELEMENTS elements
const ELEMENTS = 1024u;

@group(1) @binding(1) var<storage, read> q: array<f32>; // [n, stride]

var<workgroup> query: array<vec4f, ELEMENTS / 4u>; // [TOGETHER, HEADS, HEAD_DIM]
var<workgroup> acc: array<f32, ELEMENTS>;          // [TOGETHER, HEADS, HEAD_DIM]: sums over weights

// Some q heads of a k head, and which of all blocks that is.
struct Block {
    kv_head: u32,
    first: u32,
    heads: u32,
    q: u32, // where a row's q has them
    index: u32,
    blocks: u32,
}

// The block of a workgroup; `blocks` share a k head.
fn block_of(group: u32, cache: Cache, heads: u32, blocks: u32) -> Block {
    let all = cache.kv_heads * blocks;
    let index = group % all;
    let sharing = heads / cache.kv_heads;
    let kv_head = index / blocks;
    let skipped = index % blocks * HEADS;
    let first = kv_head * sharing + skipped;
    return Block(kv_head, first, min(HEADS, sharing - skipped), first * cache.head_dim, index, all);
}

// What the rows together see of a chunk: positions begin .. end.
struct View {
    kv_head: u32,
    sequence: u32, // of any of them
    begin: u32,
    end: u32,
    queries: u32,  // heads of all of them
}

// The first `used` of four elements of q, then zeros.
fn elements(at: u32, used: u32) -> vec4f {
    var v = vec4f();
    for (var i = 0u; i < min(used, 4u); i++) {
        v[i] = q[at + i];
    }
    return v;
}

// Row r of those together gets its queries, `heads` of them from q[at] on, and no sums.
fn ask(r: u32, at: u32, heads: u32, head_dim: u32, lane: Lane) {
    for (var i = lane.index; i < HEADS * HEAD_DIM; i += LANES) {
        let own = r * HEADS * HEAD_DIM + i;
        acc[own] = 0.0;
        if own % 4u == 0u {
            let used = select(0u, head_dim - i % HEAD_DIM, i / HEAD_DIM < heads);
            query[own / 4u] = elements(at + i / HEAD_DIM * head_dim + i % HEAD_DIM, used);
        }
    }
}

// The scores of a chunk.
fn score(view: View, cache: Cache, scale: f32, lane: Lane) {
    for (var i = lane.index; i < CHUNK; i += LANES) {
        let at = view.begin / CHUNK * CHUNK + i;
        let inside = at >= view.begin && at < view.end;
        let position = select(view.begin, at, inside);
        let own = block(cache, view.kv_head, view.sequence, position);
        var s = array<f32, MOST>();
        for (var e = 0u; e < HEAD_DIM / 4u; e++) {
            let k = key_quad(own, position % PAGE, e);
            for (var h = 0u; h < TOGETHER * HEADS; h++) {
                if h < view.queries {
                    let v = query[h * HEAD_DIM / 4u + e];
                    s[h] = fma(v.w, k.w, fma(v.z, k.z, fma(v.y, k.y, fma(v.x, k.x, s[h]))));
                }
            }
        }
        let factor = key_scale(own, position % PAGE) * scale;
        for (var h = 0u; h < TOGETHER * HEADS; h++) {
            scores[h * PAD + i] = select(LEAST, s[h] * factor, inside);
        }
    }
    workgroupBarrier();
}

// Folds the weighted sums of a chunk's values in.
fn add_values(view: View, cache: Cache, lane: Lane) {
    for (var e = lane.index; e < HEAD_DIM; e += LANES) {
        var sum = array<f32, MOST>(); // naga does not clear variables in loops
        for (var page = view.begin / PAGE * PAGE; page < view.end; page += PAGE) {
            let own = block(cache, view.kv_head, view.sequence, page);
            for (var p = max(page, view.begin); p < min(page + PAGE, view.end); p++) {
                let v = value_at(own, p % PAGE, e) * value_scale(own, p % PAGE);
                for (var h = 0u; h < TOGETHER * HEADS; h++) {
                    if h < view.queries {
                        sum[h] = fma(scores[h * PAD + p % CHUNK], v, sum[h]);
                    }
                }
            }
        }
        for (var h = 0u; h < TOGETHER * HEADS; h++) {
            if h < view.queries {
                acc[h * HEAD_DIM + e] = folded(acc[h * HEAD_DIM + e], sum[h], h);
            }
        }
    }
    workgroupBarrier();
}

// Folds a chunk in. All lanes call, behind a barrier after the rows asked.
fn add_chunk(before: Softmax, view: View, cache: Cache, scale: f32, lane: Lane) -> Softmax {
    score(view, cache, scale, lane);
    let softmax = fold(before, weigh(lane), lane);
    add_values(view, cache, lane);
    return softmax;
}
