// Reads keys and values as they are stored, in blocks (see cache.wgsl).

import package::shared::cache::{PAGE, Quad, unquad};

@id(0) override HEAD_DIM: u32; // padded to 4

@group(1) @binding(2) var<storage, read> k_cache: array<Quad>; // [pages, heads, block]
@group(1) @binding(3) var<storage, read> v_cache: array<Word>; // [pages, heads, block]

// What one element is read with, and how many elements it has.
@if(f32)
alias Word = f32;
@if(f16 || bytes)
alias Word = u32;
@if(f32)
const PER_WORD = 1u;
@if(f16)
const PER_WORD = 2u;
@if(bytes)
const PER_WORD = 4u;

// Quad `i` of the key at a position of a block, without its scale.
fn key_quad(block: u32, offset: u32, i: u32) -> vec4f {
    return unquad(k_cache[block + offset * (HEAD_DIM / 4u) + i]);
}

// Element `i` of the value at a position of a block, without its scale.
fn value_at(block: u32, offset: u32, i: u32) -> f32 {
    let word = v_cache[block * (4u / PER_WORD) + (offset * HEAD_DIM + i) / PER_WORD];
    @if(f32)
    return word;
    @if(f16)
    return unpack2x16float(word)[i % 2u];
    @if(bytes)
    return f32(extractBits(i32(word), i % 4u * 8u, 8u));
}

// Where a block has the scale of a position.
fn scale_at(block: u32, offset: u32) -> u32 {
    return block + PAGE * (HEAD_DIM / 4u) + offset;
}

// What the elements of the key at a position of a block are multiplied by.
fn key_scale(block: u32, offset: u32) -> f32 {
    @if(f32 || f16)
    return 1.0;
    @if(bytes)
    return bitcast<f32>(k_cache[scale_at(block, offset)]);
}

// The same of the value.
fn value_scale(block: u32, offset: u32) -> f32 {
    @if(f32 || f16)
    return 1.0;
    @if(bytes)
    return bitcast<f32>(v_cache[scale_at(block, offset)]);
}
