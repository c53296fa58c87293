// Workgroup memory for the weights and inputs of a tile, and for other numbers before and behind them.

import package::shared::tile::{OUTPUTS, ROWS};

const DEEP = 8u;  // vec4s of f32 that a row has room for
const PITCH = 9u; // between rows of inputs: lanes that read different rows then read different banks

@if(!half)
var<workgroup> w_tile: array<vec4f, OUTPUTS * DEEP>; // [inputs, four outputs]
@if(!half)
var<workgroup> x_tile: array<vec4f, ROWS * PITCH>;   // [rows, four inputs]
@if(half)
var<workgroup> w_tile: array<vec2u, OUTPUTS * DEEP * 2u>; // f16: twice as many
@if(half)
var<workgroup> x_tile: array<vec2u, ROWS * PITCH * 2u>;

// The tiles as room for vec4s of f32.
@if(!half)
fn w_at(at: u32) -> vec4f {
    return w_tile[at];
}

@if(half)
fn w_at(at: u32) -> vec4f {
    return bitcast<vec4f>(vec4u(w_tile[2u * at], w_tile[2u * at + 1u]));
}

@if(!half)
fn put_w(at: u32, v: vec4f) {
    w_tile[at] = v;
}

@if(half)
fn put_w(at: u32, v: vec4f) {
    let words = bitcast<vec4u>(v);
    w_tile[2u * at] = words.xy;
    w_tile[2u * at + 1u] = words.zw;
}

@if(!half)
fn x_at(at: u32) -> vec4f {
    return x_tile[at];
}

@if(half)
fn x_at(at: u32) -> vec4f {
    return bitcast<vec4f>(vec4u(x_tile[2u * at], x_tile[2u * at + 1u]));
}

@if(!half)
fn put_x(at: u32, v: vec4f) {
    x_tile[at] = v;
}

@if(half)
fn put_x(at: u32, v: vec4f) {
    let words = bitcast<vec4u>(v);
    x_tile[2u * at] = words.xy;
    x_tile[2u * at + 1u] = words.zw;
}
