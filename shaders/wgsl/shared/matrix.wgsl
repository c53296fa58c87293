// The weights of a projection.

import package::shared::panels::{Panels, codes_at, decode, offsets_at, scales_at};
import package::shared::unit::{Unit, unit_of, vec4_of};
import package::shared::weights::{Packed, unpack};

@group(1) @binding(1) var<storage, read> weight: array<Packed>; // [rows, k4], or panels

// Elements 4 i .. 4 i + 3 of four of `rows` weight rows, as columns.
@if(nibbles || bytes)
fn weights(p: Panels, rows: u32, k4: u32, block: u32, i: u32) -> mat4x4f {
    let scales = weight[scales_at(p, block, i)];
    return decode(p, weight[codes_at(p, block, i)], scales, weight[offsets_at(p, block, i)], block, i);
}

@if(f32 || f16 || bf16)
fn weights(p: Panels, rows: u32, k4: u32, block: u32, i: u32) -> mat4x4f {
    let at = min(vec4u(block * 4u) + vec4u(0u, 1u, 2u, 3u), vec4u(rows - 1u)) * k4 + i;
    return transpose(mat4x4f(unpack(weight[at.x]), unpack(weight[at.y]), unpack(weight[at.z]), unpack(weight[at.w])));
}

// Unit u of four rows, as matrix-vector kernels read them.
@if(nibbles || bytes)
fn unit(p: Panels, rows: u32, k4: u32, block: u32, u: u32) -> Unit {
    let i = vec4_of(u);
    let words = weight[codes_at(p, block, i)];
    return unit_of(p, words, weight[scales_at(p, block, i)], weight[offsets_at(p, block, i)], block);
}

@if(f32 || f16 || bf16)
fn unit(p: Panels, rows: u32, k4: u32, block: u32, u: u32) -> Unit {
    return Unit(weights(p, rows, k4, block, u));
}
