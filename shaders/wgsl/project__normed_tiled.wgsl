// y = W norm(x) + b for rows of class prompt, and t = A norm(x) of the site that is carried, as project__normed.wgsl.
// Grid: one workgroup per OUTPUTS outputs and ROWS rows of x, then one per slot, OUTPUTS rank rows and ROWS rows: the
// rows of A are further weights. Bound by arithmetic.

import package::shared::carry::{next, t_out, t_out_stride};
import package::shared::dots::masked;
import package::shared::lane::Lane;
import package::shared::panels::{Panels, prepare};
import package::shared::squares::add_squares;
import package::shared::step::NO_INDEX;
import package::shared::tile::{LANE_ROWS, OUTPUTS, Place, Products, ROWS, STEP, Sums, TILE_LANES, multiply, place as place_of, put_inputs, quad_of, row_of, sums_of};
import package::shared::tile_down::{load_factors, rank_row, rank_scale};
import package::shared::tile_inputs::x;
import package::shared::tile_lora::{note_slots, slot_from, slot_of};
import package::shared::tile_room::{DEEP, PITCH, put_x, x_at};
import package::shared::tile_matrix::load_weights;

struct Params { // as in project__normed.wgsl
    panels: Panels,
    k4: u32,
    used: u32,
    rows: u32,
    first: u32,
    stride: u32,
    extent: u32,
    biased: u32,
    width: u32,
    carried: u32,
    eps: f32,
}

@group(1) @binding(0) var<uniform> params: Params;
@group(1) @binding(3) var<storage, read> vectors: array<vec4f>; // g [k4], then b [outputs of W padded to 4]
@group(1) @binding(5) var<storage, read_write> y: array<f32>;   // [n, stride]
var<workgroup> scales: array<f32, ROWS>;                        // per row, 1 / rms(x)

// Vec4 i of a row of the tile.
fn input(place: Place, row: u32, i: u32) -> vec4f {
    let used = select(4u, params.used, i + 1u == params.k4);
    return masked(x[min(place.line + row, place.end - 1u) * params.k4 + i], used);
}

// Eight lanes sum the squares of a row, each every eighth vec4.
fn put_scales(place: Place, lane: Lane) {
    for (var at = lane.index; at < ROWS * DEEP; at += TILE_LANES) {
        var squares = 0.0;
        for (var i = at % DEEP; i < params.k4; i += DEEP) {
            let v = input(place, at / DEEP, i);
            squares = add_squares(squares, v);
        }
        put_x(at / DEEP * PITCH + at % DEEP, vec4f(squares));
    }
    workgroupBarrier();
    for (var row = lane.index; row < ROWS; row += TILE_LANES) {
        var sum = 0.0;
        for (var i = 0u; i < DEEP; i++) {
            sum += x_at(row * PITCH + i).x;
        }
        scales[row] = 1.0 / sqrt(sum / f32(params.width) + params.eps);
    }
    workgroupBarrier();
}

// Puts norm(x) from vec4 `begin` on, zeros behind its end.
fn load_inputs(begin: u32, place: Place, lane: Lane) {
    for (var at = lane.index; at < ROWS * STEP; at += TILE_LANES) {
        let i = min(begin + at % STEP, params.k4 - 1u);
        let v = input(place, at / STEP, i) * vectors[i] * scales[at / STEP];
        put_inputs(at, begin + at % STEP, params.k4, params.used, v);
    }
}

fn finish(acc: ptr<function, Sums>, place: Place, slot: u32, lane: Lane) {
    for (var i = 0u; i < LANE_ROWS; i++) {
        let row = row_of(lane, i);
        let line = place.line + row;
        for (var e = 0u; e < 4u; e++) {
            let local = place.block * OUTPUTS + quad_of(lane) * 4u + e;
            var value = (*acc)[i][e];
            if slot != NO_INDEX {
                let own = rank_row(slot, local);
                if slot_of[row] == slot && own != NO_INDEX {
                    t_out[line * t_out_stride() + local] = value * rank_scale(own);
                }
            } else if line < place.end && local < params.rows {
                let output = params.first + local;
                if params.biased != 0u {
                    value += vectors[params.k4 + output / 4u][output % 4u];
                }
                y[line * params.stride + output] = value;
            }
        }
    }
}

@compute @workgroup_size(TILE_LANES)
fn main(lane: Lane) {
    var slot = NO_INDEX;
    var place = place_of(lane);
    let blocks = (params.rows + OUTPUTS - 1u) / OUTPUTS;
    if place.block >= blocks {
        let rank_blocks = (params.carried + OUTPUTS - 1u) / OUTPUTS;
        place.block -= blocks;
        if place.block >= rank_blocks * next.slots {
            return;
        }
        slot = place.block / rank_blocks;
        place.block %= rank_blocks;
        note_slots(place, next.layer, lane);
        if slot_from(slot, lane) != slot {
            return;
        }
    }
    put_scales(place, lane);
    @if(nibbles)
    prepare(params.panels, lane.index);
    var products: Products;
    for (var begin = 0u; begin < params.k4; begin += STEP) {
        if slot == NO_INDEX {
            load_weights(params.panels, params.rows, params.k4, begin, place.block, lane);
        } else {
            @if(!int8)
            load_factors(params.k4, begin, place.block, slot, lane);
        }
        load_inputs(begin, place, lane);
        multiply(&products, lane);
    }
    var acc = sums_of(&products, lane);
    finish(&acc, place, slot, lane);
}
