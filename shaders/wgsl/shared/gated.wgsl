// The weights of the two projections of a gated MLP.

import package::shared::panels::{Panels, codes_at, decode, offsets_at, scales_at};
import package::shared::unit::{Unit, unit_of, vec4_of};
import package::shared::weights::{Packed, unpack};

@group(1) @binding(1) var<storage, read> gate: array<Packed>; // [rows, k4], or panels
@group(1) @binding(3) var<storage, read> up: array<Packed>;   // [rows, k4]

// Elements 4 i .. 4 i + 3 of four of `rows` weight rows, as columns.
@if(nibbles || bytes)
fn gate_weights(p: Panels, rows: u32, k4: u32, block: u32, i: u32) -> mat4x4f {
    let scales = gate[scales_at(p, block, i)];
    return decode(p, gate[codes_at(p, block, i)], scales, gate[offsets_at(p, block, i)], block, i);
}

@if(nibbles || bytes)
fn up_weights(p: Panels, rows: u32, k4: u32, block: u32, i: u32) -> mat4x4f {
    let scales = up[scales_at(p, block, i)];
    return decode(p, up[codes_at(p, block, i)], scales, up[offsets_at(p, block, i)], block, i);
}

@if(f32 || f16 || bf16)
fn gate_weights(p: Panels, rows: u32, k4: u32, block: u32, i: u32) -> mat4x4f {
    let at = places(rows, k4, block, i);
    return transpose(mat4x4f(unpack(gate[at.x]), unpack(gate[at.y]), unpack(gate[at.z]), unpack(gate[at.w])));
}

@if(f32 || f16 || bf16)
fn up_weights(p: Panels, rows: u32, k4: u32, block: u32, i: u32) -> mat4x4f {
    let at = places(rows, k4, block, i);
    return transpose(mat4x4f(unpack(up[at.x]), unpack(up[at.y]), unpack(up[at.z]), unpack(up[at.w])));
}

// Where the vec4s i of four weight rows lie.
fn places(rows: u32, k4: u32, block: u32, i: u32) -> vec4u {
    return min(vec4u(block * 4u) + vec4u(0u, 1u, 2u, 3u), vec4u(rows - 1u)) * k4 + i;
}

// Unit u of four rows, as matrix-vector kernels read them.
@if(nibbles || bytes)
fn gate_unit(p: Panels, rows: u32, k4: u32, block: u32, u: u32) -> Unit {
    let i = vec4_of(u);
    let words = gate[codes_at(p, block, i)];
    return unit_of(p, words, gate[scales_at(p, block, i)], gate[offsets_at(p, block, i)], block);
}

@if(nibbles || bytes)
fn up_unit(p: Panels, rows: u32, k4: u32, block: u32, u: u32) -> Unit {
    let i = vec4_of(u);
    let words = up[codes_at(p, block, i)];
    return unit_of(p, words, up[scales_at(p, block, i)], up[offsets_at(p, block, i)], block);
}

@if(f32 || f16 || bf16)
fn gate_unit(p: Panels, rows: u32, k4: u32, block: u32, u: u32) -> Unit {
    return Unit(gate_weights(p, rows, k4, block, u));
}

@if(f32 || f16 || bf16)
fn up_unit(p: Panels, rows: u32, k4: u32, block: u32, u: u32) -> Unit {
    return Unit(up_weights(p, rows, k4, block, u));
}
