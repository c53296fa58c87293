// A tile of W x: OUTPUTS outputs of ROWS rows. Weights and inputs go through workgroup memory, STEP vec4s of inputs at a
// time, and a lane sums 4 outputs of LANE_ROWS rows. Each sum takes its inputs (in f32 one after the other by fma; see
// tile_int8.wgsl and tile_coop.wgsl) in the same order whatever the tile is.

import package::shared::dots::{fold, inside};
import package::shared::lane::{Lane, group_index};
import package::shared::step::{ROWS as ALL_ROWS, count, generated};
import package::shared::tile_room::{DEEP, PITCH, put_w, put_x, w_at, x_at};
@if(int8)
import package::shared::tile_int8::{add_dots, round_row};
@if(half)
import package::shared::tile_half::{half_inputs_of, half_weights_of, put_half_inputs, put_half_weights};
@if(coop)
import package::shared::tile_coop::{Matrices, add_products, put_half_inputs, put_half_weights, sums_of_matrices};

@id(0) override ROWS: u32 = 64u;     // at most 64
@id(1) override OUTPUTS: u32 = 64u;  // both 64 for cooperative matrices
@id(2) override LANE_ROWS: u32 = 8u;
override TILE_LANES: u32 = OUTPUTS * ROWS / LANE_ROWS / 4u; // a multiple of 8
const MAX_LANE_ROWS = 8u;

@if(!half)
const STEP = DEEP;
@if(half)
const STEP = 2u * DEEP;

// Per row of the lane, the sums of its four outputs.
alias Sums = array<vec4f, MAX_LANE_ROWS>;

// Where a tile is: its first line of those of class prompt, which end at `end`, and its block of outputs.
struct Place {
    line: u32,
    end: u32,
    block: u32,
}

fn place(lane: Lane) -> Place {
    let end = count(ALL_ROWS);
    let before = generated(ALL_ROWS);
    let row_blocks = (end - before + ROWS - 1u) / ROWS;
    let index = group_index(lane);
    return Place(before + index % row_blocks * ROWS, end, index / row_blocks);
}

// Which outputs a tile has: quads of four from `first` on; from quad `half` on they lie `jump` further.
struct Span {
    first: u32,
    half: u32,
    jump: u32,
}

fn output_of(span: Span, quad: u32) -> u32 {
    return span.first + quad * 4u + select(0u, span.jump, quad >= span.half);
}

// The quad of outputs that a lane sums, and its r-th row.
fn quad_of(lane: Lane) -> u32 {
    return lane.index % (OUTPUTS / 4u);
}

fn row_of(lane: Lane, r: u32) -> u32 {
    return r * (ROWS / LANE_ROWS) + lane.index / (OUTPUTS / 4u);
}

// What is summed over the inputs, and becomes Sums at the end.
@if(!coop)
alias Products = Sums;
@if(coop)
alias Products = Matrices;

// The lane's sums of what all lanes have multiplied. All lanes call.
fn sums_of(products: ptr<function, Products>, lane: Lane) -> Sums {
    @if(!coop)
    return *products;
    @if(coop)
    return sums_of_matrices(products, lane);
}

// Puts four inputs' weights of four outputs, as columns, where products are made.
fn put_tile(i: u32, quad: u32, w: mat4x4f) {
    @if(coop || half)
    put_half_weights(i, quad, w);
    @if(!coop && !half)
    put_weights(i, quad, w);
}

// The same, in f32.
fn put_weights(i: u32, quad: u32, w: mat4x4f) {
    for (var b = 0u; b < 4u; b++) {
        put_w((i * 4u + b) * (OUTPUTS / 4u) + quad, w[b]);
    }
}

fn weights_of(i: u32, quad: u32) -> mat4x4f {
    let at = i * OUTPUTS + quad;
    let pitch = OUTPUTS / 4u;
    return mat4x4f(w_at(at), w_at(at + pitch), w_at(at + 2u * pitch), w_at(at + 3u * pitch));
}

// Puts vec4 i of an input row of k4, of which the last has `used` elements; `at` counts the rows' vec4s of the step.
fn put_inputs(at: u32, i: u32, k4: u32, used: u32, v: vec4f) {
    let own = inside(v, i, k4, used);
    @if(coop || half)
    put_half_inputs(at / STEP, at % STEP, own);
    @if(!coop && !half)
    put_x(at / STEP * PITCH + at % STEP, own);
}

// Adds the products of what all lanes have put. All lanes call.
@if(!int8 && !coop)
fn multiply(acc: ptr<function, Products>, lane: Lane) {
    workgroupBarrier();
    for (var i = 0u; i < STEP; i++) {
        @if(!half)
        let w = weights_of(i, quad_of(lane));
        @if(half)
        let w = half_weights_of(i, quad_of(lane));
        for (var r = 0u; r < LANE_ROWS; r++) {
            @if(!half)
            let v = x_at(row_of(lane, r) * PITCH + i);
            @if(half)
            let v = half_inputs_of(row_of(lane, r), i);
            (*acc)[r] = fold((*acc)[r], w, v);
        }
    }
    workgroupBarrier();
}

@if(int8)
fn multiply(acc: ptr<function, Products>, lane: Lane) {
    workgroupBarrier();
    for (var row = lane.index; row < ROWS; row += TILE_LANES) {
        round_row(row);
    }
    workgroupBarrier();
    add_dots(acc, lane);
    workgroupBarrier();
}

@if(coop)
fn multiply(acc: ptr<function, Products>, lane: Lane) {
    workgroupBarrier();
    add_products(acc, lane);
    workgroupBarrier();
}
