// Four stored weights as f32, without needing the device's f16 feature.

@if(f32)
alias Packed = vec4f;
@if(f16 || bf16)
alias Packed = vec2u;
@if(nibbles || bytes)
alias Packed = vec4u; // four rows' words, see panels.wgsl

@if(f32)
fn unpack(w: Packed) -> vec4f {
    return w;
}

@if(f16)
fn unpack(w: Packed) -> vec4f {
    return vec4f(unpack2x16float(w.x), unpack2x16float(w.y));
}

// A bfloat16 is the upper half of an f32.
@if(bf16)
fn unpack(w: Packed) -> vec4f {
    return bitcast<vec4f>(vec4u(w.x << 16u, w.x & 0xffff0000u, w.y << 16u, w.y & 0xffff0000u));
}
