// Softmax over chunks of positions that are folded together in their order (Milakov & Gimelshein 2018), for up to MOST
// heads at a time: SHARE lanes look at the scores of one head.

import package::shared::lane::{Lane, LANES};

const LEAST = -3.4e38; // the score of what is not seen
const CHUNK = 128u;
const PAD = 136u; // of a head's scores: others' lie in other banks
const MOST = 8u;
const SHARE = 8u;

var<workgroup> scores: array<f32, MOST * PAD>;
var<workgroup> tops: array<f32, LANES>;
var<workgroup> sums: array<f32, LANES>;
var<workgroup> factors: array<vec2f, MOST>;

// The maximum of the scores of head lane.index / SHARE, and the sum of their weights.
struct Softmax {
    top: f32,
    total: f32,
}

// Scores to weights exp(score - top). All lanes call, behind a barrier after the scores were written.
fn weigh(lane: Lane) -> Softmax {
    let first = lane.index / SHARE * SHARE;
    let at = lane.index / SHARE * PAD;
    var top = LEAST;
    for (var i = lane.index % SHARE; i < CHUNK; i += SHARE) {
        top = max(top, scores[at + i]);
    }
    tops[lane.index] = top;
    workgroupBarrier();
    for (var i = 0u; i < SHARE; i++) {
        top = max(top, tops[first + i]);
    }
    var sum = 0.0;
    for (var i = lane.index % SHARE; i < CHUNK; i += SHARE) {
        let s = scores[at + i];
        let weight = select(exp(s - top), 0.0, s == LEAST);
        scores[at + i] = weight;
        sum += weight;
    }
    sums[lane.index] = sum;
    workgroupBarrier();
    var total = 0.0;
    for (var i = 0u; i < SHARE; i++) {
        total += sums[first + i];
    }
    return Softmax(top, total);
}

// Folds a chunk's softmax in, all lanes calling; `folded` may then be called for sums of the chunk's weights.
fn fold(before: Softmax, chunk: Softmax, lane: Lane) -> Softmax {
    let top = max(before.top, chunk.top);
    let factor = vec2f(exp(before.top - top), exp(chunk.top - top));
    if lane.index % SHARE == 0u {
        factors[lane.index / SHARE] = factor;
    }
    workgroupBarrier();
    return Softmax(top, fma(chunk.total, factor.y, before.total * factor.x));
}

// What was folded of a sum over weights, with the chunk's sum.
fn folded(before: f32, sum: f32, head: u32) -> f32 {
    return fma(sum, factors[head].y, before * factors[head].x);
}
