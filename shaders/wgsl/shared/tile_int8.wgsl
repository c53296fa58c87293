// Products of codes: inputs are rounded to 8 bits, per row and block of 32 x = d c with d = max |x| / 127 (as
// kernels-cpu's fast precision), and what is summed in integers is scaled once per block.

import package::shared::lane::Lane;
import package::shared::panels::{Panels, f16s, half, scale_of, zeros_of};
import package::shared::tile::{LANE_ROWS, MAX_LANE_ROWS, OUTPUTS, ROWS, STEP, Sums, quad_of, row_of};
import package::shared::tile_room::{PITCH, x_at};

var<workgroup> w_codes: array<vec4u, OUTPUTS * 2u>;     // [four inputs, four outputs], a word per output
var<workgroup> w_scales: array<vec4f, OUTPUTS / 4u>;    // of the block
var<workgroup> w_offsets: array<vec4f, OUTPUTS / 4u>;   // an element is scale * code + offset
var<workgroup> x_codes: array<u32, ROWS * PITCH>;       // [rows, four inputs]
var<workgroup> x_scales: array<vec2f, ROWS>;            // d, and d times the codes' sum

// What is added to scale * code, code being as `code_words` has it; not for NormalFloat.
fn offset_of(p: Panels, scale: vec4f, offsets: vec4u, quad: u32) -> vec4f {
    switch p.offset_type {
        case 1u: {
            return f16s(half(offsets, quad));
        }
        case 2u: {
            return -scale * zeros_of(offsets, quad);
        }
        default: {
            @if(nibbles)
            return -8.0 * scale;
            @if(bytes)
            return vec4f();
        }
    }
}

// The codes of columns 4 i .. 4 i + 3 of four rows, a word per row, as dot4I8Packed reads them.
fn code_words(words: vec4u, i: u32) -> vec4u {
    @if(nibbles)
    return (words >> vec4u(i % 8u / 4u * 4u)) & vec4u(0x0f0f0f0fu);
    @if(bytes)
    return words;
}

// Puts the codes of four inputs, vec4 `source` of a row, of four outputs.
fn put_codes(i: u32, quad: u32, words: vec4u, source: u32) {
    w_codes[i * (OUTPUTS / 4u) + quad] = code_words(words, source);
}

// Puts the scales and offsets of a block of four outputs, quad `source`.
fn put_scales(quad: u32, p: Panels, scales: vec4u, offsets: vec4u, source: u32) {
    let scale = scale_of(p, scales, source);
    w_scales[quad] = scale;
    w_offsets[quad] = offset_of(p, scale, offsets, source);
}

// A row of inputs to codes.
fn round_row(row: u32) {
    // Sizes compare as their bits do; NaN has the largest.
    var largest = vec4u();
    for (var i = 0u; i < STEP; i++) {
        largest = max(largest, bitcast<vec4u>(x_at(row * PITCH + i)) & vec4u(0x7fffffffu));
    }
    let d = bitcast<f32>(max(max(largest.x, largest.y), max(largest.z, largest.w))) / 127.0;
    let inverse = select(0.0, 1.0 / d, d > 1e-37);
    var sum = 0;
    for (var i = 0u; i < STEP; i++) {
        let code = clamp(round(x_at(row * PITCH + i) * inverse), vec4f(-127.0), vec4f(127.0));
        let word = pack4xI8(vec4i(code));
        x_codes[row * PITCH + i] = word;
        sum += dot4I8Packed(word, 0x01010101u);
    }
    x_scales[row] = vec2f(d, d * f32(sum));
}

fn add_dots(acc: ptr<function, Sums>, lane: Lane) {
    let quad = quad_of(lane);
    var dots: array<vec4i, MAX_LANE_ROWS>;
    for (var i = 0u; i < STEP; i++) {
        let w = w_codes[i * (OUTPUTS / 4u) + quad];
        for (var r = 0u; r < LANE_ROWS; r++) {
            let v = x_codes[row_of(lane, r) * PITCH + i];
            dots[r] += vec4i(dot4I8Packed(w.x, v), dot4I8Packed(w.y, v), dot4I8Packed(w.z, v), dot4I8Packed(w.w, v));
        }
    }
    for (var r = 0u; r < LANE_ROWS; r++) {
        let s = x_scales[row_of(lane, r)];
        let products = fma(w_offsets[quad], vec4f(s.y), (*acc)[r]);
        (*acc)[r] = fma(w_scales[quad] * s.x, vec4f(dots[r]), products);
    }
}
