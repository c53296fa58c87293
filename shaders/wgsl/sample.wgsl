// Draws a token per sample: penalty, temperature, top-k, top-p, then the inverse of the cumulative distribution at a
// Philox number. Thresholds are found by bisection over the order-preserving integer image of a float: no sorting.
// Grid: one workgroup of 256 per sample; a sequence's samples are drawn in order by its first one's workgroup.
// Bound by reading the logits: 3 passes, and 32 each for top-k and top-p.

import package::shared::draw::{Draw, LANES, logit, logits, mass, params, share, state, tighten};
import package::shared::lane::{Lane, group_index};
import package::shared::philox::uniform_number;
import package::shared::reduce::{maximum, sum};
import package::shared::step::{SAMPLES, count, sample_words, step_row};

@group(1) @binding(3) var<storage, read_write> results: array<vec4u>;     // [samples]: token, logprob, invalid, closed

const LEAST = -3.4e38;

var<workgroup> segments: array<f32, LANES>;

// The first token whose cumulative mass exceeds u * the total; else the last kept one. Lanes sum consecutive segments.
fn draw_token(draw: Draw, top: f32, threshold: u32, u: f32, lane: Lane) -> u32 {
    let length = (params.vocab + LANES - 1u) / LANES;
    var part = 0.0;
    for (var i = lane.index * length; i < min((lane.index + 1u) * length, params.vocab); i++) {
        part += share(logit(draw, i), top, threshold, false);
    }
    segments[lane.index] = part;
    workgroupBarrier();
    var total = 0.0;
    var segment = 0u;
    for (var i = 0u; i < LANES; i++) {
        total += segments[i];
        segment = select(segment, i, segments[i] > 0.0);
    }
    var before = 0.0;
    for (var i = 0u; i < segment; i++) {
        if before + segments[i] > u * total {
            segment = i;
            break;
        }
        before += segments[i];
    }
    var token = 0u;
    for (var i = segment * length; i < min((segment + 1u) * length, params.vocab); i++) {
        let own = share(logit(draw, i), top, threshold, false);
        token = select(token, i, own > 0.0);
        before += own;
        if before > u * total {
            break;
        }
    }
    workgroupBarrier();
    return token;
}

fn draw_sample(index: u32, lane: Lane) {
    let who = sample_words(index, 0u);  // row, sequence, path, position
    let how = sample_words(index, 1u);  // seed, temperature, top_k
    let more = sample_words(index, 2u); // top_p, penalty
    let draw = Draw(index * params.stride, who.y * params.state_stride,
        bitcast<f32>(more.y), bitcast<f32>(how.z));
    var bad = 0.0;
    var raw_top = LEAST;
    var best = LEAST;
    var best_id = 0u;
    for (var i = lane.index; i < params.vocab; i += LANES) {
        let raw = logits[draw.logits + i];
        // By its bits: a compiler may assume that there is no NaN.
        bad = select(bad, 1.0, (bitcast<u32>(raw) & 0x7f800000u) == 0x7f800000u);
        raw_top = max(raw_top, raw);
        let value = logit(draw, i);
        best_id = select(best_id, i, value > best);
        best = max(best, value);
    }
    let invalid = maximum(bad, lane, LANES) > 0.0;
    raw_top = maximum(raw_top, lane, LANES);
    let top = maximum(best, lane, LANES);
    // The lowest id among equal maxima; ids are exact in f32.
    var token = u32(-maximum(select(LEAST, -f32(best_id), best == top), lane, LANES));
    if draw.temperature > 0.0 && !invalid {
        var threshold = 0u;
        if how.w > 0u && how.w < params.vocab {
            threshold = tighten(draw, top, 0u, f32(how.w), true, lane);
        }
        if bitcast<f32>(more.x) < 1.0 {
            let wanted = bitcast<f32>(more.x) * mass(draw, top, threshold, false, lane);
            threshold = tighten(draw, top, threshold, wanted, false, lane);
        }
        token = draw_token(draw, top, threshold, uniform_number(how.xy, vec4u(who.zw, 0u, 0u)), lane);
    }
    token = select(min(token, params.vocab - 1u), 0u, invalid);
    var total = 0.0;
    for (var i = lane.index; i < params.vocab; i += LANES) {
        total += exp(logits[draw.logits + i] - raw_top);
    }
    total = sum(total, lane, LANES);
    if lane.index == 0u {
        let logprob = logits[draw.logits + token] - raw_top - log(total);
        let closed = step_row(who.x).closed;
        results[index] = vec4u(token, bitcast<u32>(logprob), u32(invalid), closed);
    }
}

@compute @workgroup_size(256)
fn main(lane: Lane) {
    let index = group_index(lane);
    let samples = count(SAMPLES);
    if index >= samples {
        return;
    }
    let sequence = sample_words(index, 0u).y;
    for (var i = 0u; i < index; i++) {
        if sample_words(i, 0u).y == sequence {
            return;
        }
    }
    for (var i = index; i < samples; i++) {
        if sample_words(i, 0u).y == sequence {
            draw_sample(i, lane);
        }
    }
    // Draws of one step do not see each other: the state takes them when all are done. Lane 0 wrote them itself.
    for (var i = index; i < samples && lane.index == 0u; i++) {
        if sample_words(i, 0u).y == sequence {
            let token = results[i].x;
            atomicStore(&state[sequence * params.state_stride], token);
            atomicOr(&state[sequence * params.state_stride + 1u + token / 32u], 1u << (token % 32u));
        }
    }
}
