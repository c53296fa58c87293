// What `sample` sums over a sample's tokens: shares after penalty and temperature, above a threshold.

import package::shared::lane::Lane;
import package::shared::reduce::sum;

struct Params {
    vocab: u32,
    stride: u32,       // elements between rows of the logits
    state_stride: u32, // words of a sequence's state
}

@group(1) @binding(0) var<uniform> params: Params;
@group(1) @binding(1) var<storage, read> logits: array<f32>;              // [samples, stride]
@group(1) @binding(2) var<storage, read_write> state: array<atomic<u32>>; // [sequences, last token + seen bits]

const LANES = 256u;

// Where a sample's logits and state begin, and what is done to the logits.
struct Draw {
    logits: u32,
    state: u32,
    penalty: f32,
    temperature: f32,
}

fn logit(draw: Draw, i: u32) -> f32 {
    var l = logits[draw.logits + i];
    let seen = ((atomicLoad(&state[draw.state + 1u + i / 32u]) >> (i % 32u)) & 1u) == 1u;
    if seen && draw.penalty != 1.0 {
        l = select(l * draw.penalty, l / draw.penalty, l > 0.0);
    }
    return select(l / draw.temperature, l, draw.temperature == 0.0);
}

// Order-preserving: key(a) >= key(b) exactly if a >= b.
fn key(value: f32) -> u32 {
    let bits = bitcast<u32>(select(value, 0.0, value == 0.0));
    return select(bits | 0x80000000u, ~bits, bits >= 0x80000000u);
}

// A token's share: exp(l - top), or 1 when counting; 0 below the threshold.
fn share(value: f32, top: f32, threshold: u32, counting: bool) -> f32 {
    return select(0.0, select(exp(value - top), 1.0, counting), key(value) >= threshold);
}

// The shares of all tokens.
fn mass(draw: Draw, top: f32, threshold: u32, counting: bool, lane: Lane) -> f32 {
    var part = 0.0;
    for (var i = lane.index; i < params.vocab; i += LANES) {
        part += share(logit(draw, i), top, threshold, counting);
    }
    return sum(part, lane, LANES);
}

// The largest threshold from `low` on at which the mass reaches `wanted`.
fn tighten(draw: Draw, top: f32, low: u32, wanted: f32, counting: bool, lane: Lane) -> u32 {
    var threshold = 0u;
    for (var bit = 0x80000000u; bit > 0u; bit >>= 1u) {
        let higher = threshold | bit;
        if mass(draw, top, max(higher, low), counting, lane) >= wanted {
            threshold = higher;
        }
    }
    return max(threshold, low);
}
