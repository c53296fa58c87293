// Elements as the cache stores them: binary16 with too large ones clamped, or codes round(x / s) with s = max |x| / 127 per
// position and head.

import package::shared::cache::Quad;
import package::shared::lane::{Lane, LANES};
import package::shared::reduce::maximum;

const MOST = 3.4e38;

// By their bits: a compiler may assume that there is no NaN.
fn infinite(v: vec4f) -> vec4<bool> {
    return (bitcast<vec4u>(v) & vec4u(0x7f800000u)) == vec4u(0x7f800000u);
}

// The largest magnitude of four elements; MOST if one is not finite.
fn magnitude(v: vec4f) -> f32 {
    let a = select(abs(v), vec4f(MOST), infinite(v));
    return max(max(a.x, a.y), max(a.z, a.w));
}

// The scale of a head, of which each lane knows the largest magnitude of its elements. All lanes call.
fn scale_of(largest: f32, lane: Lane) -> f32 {
    return maximum(largest, lane, LANES) / 127.0;
}

// The scale as it is stored: NaN where an element was not finite.
fn scale_word(scale: f32) -> u32 {
    return select(bitcast<u32>(scale), 0x7fc00000u, scale >= MOST / 127.0);
}

@if(f32)
fn quad(v: vec4f, scale: f32) -> Quad {
    return v;
}

@if(f16)
fn quad(v: vec4f, scale: f32) -> Quad {
    let h = select(clamp(v, vec4f(-65504.0), vec4f(65504.0)), v, infinite(v));
    return vec2u(pack2x16float(h.xy), pack2x16float(h.zw));
}

@if(bytes)
fn quad(v: vec4f, scale: f32) -> Quad {
    let c = vec4i(clamp(round(v / select(1.0, scale, scale > 0.0)), vec4f(-127.0), vec4f(127.0)));
    let bytes = (vec4u(c) & vec4u(255u)) << vec4u(0u, 8u, 16u, 24u);
    return bytes.x | bytes.y | bytes.z | bytes.w;
}
