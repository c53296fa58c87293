// y = f(G x + b_g + B_g t) * (U x + b_u + B_u t) for rows of class prompt, and t = A y of the site that is carried.
// Grid: one workgroup per OUTPUTS / 2 outputs and ROWS rows of x: half of a tile's outputs are G's, half the same of U.
// Bound by arithmetic.

import package::shared::a_pool::{a_quad, a_quad_entry};
import package::shared::carry::{next, t_out, t_out_stride};
import package::shared::functions::activate;
import package::shared::lane::Lane;
import package::shared::panels::{Panels, prepare};
import package::shared::step::NO_INDEX;
import package::shared::tile::{LANE_ROWS, OUTPUTS, Place, Products, ROWS, STEP, Span, TILE_LANES, multiply, place, quad_of, row_of, sums_of};
import package::shared::tile_room::{put_w, w_at};
import package::shared::tile_gated::load_weights;
import package::shared::tile_inputs::load_inputs;
import package::shared::tile_lora::{add_lora, note_slots, slot_of};

// As in gate_up.wgsl.
struct Params {
    panels: Panels,
    k4: u32,
    used: u32,
    rows: u32,
    first: u32,
    outputs: u32,
    stride: u32,
    extent: u32,
    function: u32,
    biased: u32,
}

const PART = 16u; // outputs of a partial sum of t

@group(1) @binding(0) var<uniform> params: Params;
@group(1) @binding(4) var<storage, read> bias: array<f32>;    // [2, outputs]
@group(1) @binding(5) var<storage, read_write> y: array<f32>; // [n, stride]

// Quads of a tile that are G's, and that are U's.
fn half() -> u32 {
    return OUTPUTS / 8u;
}

fn bias_of(first: u32) -> vec4f {
    if params.biased == 0u {
        return vec4f();
    }
    let last = 2u * params.outputs - 1u;
    return vec4f(bias[min(first, last)], bias[min(first + 1u, last)], bias[min(first + 2u, last)], bias[min(first + 3u, last)]);
}

// t = A y over the tile's outputs, of which `local` is the first; y is where weights were.
fn carry(local: u32, place: Place, lane: Lane) {
    note_slots(place, next.layer, lane);
    workgroupBarrier();
    let t_width = next.parts * next.rank;
    let parts = min(OUTPUTS / 2u, params.rows - local + PART - 1u) / PART;
    for (var at = lane.index; at < ROWS * parts * t_width; at += TILE_LANES) {
        let output = at % t_width;
        let part = at / t_width % parts;
        let row = at / t_width / parts;
        let index = output / next.rank * next.slots + min(slot_of[row], next.slots - 1u);
        let entry = a_quad_entry(index);
        let r = output % next.rank;
        if slot_of[row] == NO_INDEX || r >= entry.rank {
            continue;
        }
        let columns = (params.outputs + 3u) / 4u;
        let first = (params.first + local + part * PART) / 4u;
        let a = (index * next.rank + r) * columns + first;
        var sum = 0.0;
        for (var q = 0u; q < min(PART / 4u, columns - first); q++) {
            sum += dot(a_quad(next.head, a + q), w_at(row * half() + part * PART / 4u + q));
        }
        let at = (place.line + row) * t_out_stride() + ((params.first + local) / PART + part) * t_width + output;
        t_out[at] = sum * entry.scale;
    }
}

@compute @workgroup_size(TILE_LANES)
fn main(lane: Lane) {
    let place = place(lane);
    let local = place.block * (OUTPUTS / 2u);
    if local >= params.rows {
        return;
    }
    @if(nibbles)
    prepare(params.panels, lane.index);
    var products: Products;
    for (var begin = 0u; begin < params.k4; begin += STEP) {
        load_weights(params.panels, params.rows, params.k4, begin, place.block, lane);
        load_inputs(begin, params.k4, params.used, place, lane);
        multiply(&products, lane);
    }
    var acc = sums_of(&products, lane);
    let first = params.first + local;
    add_lora(&acc, Span(first, half(), params.outputs - OUTPUTS / 2u), place, lane);
    let quad = quad_of(lane) % half();
    if quad_of(lane) >= half() {
        for (var i = 0u; i < LANE_ROWS; i++) {
            put_w(row_of(lane, i) * half() + quad, acc[i] + bias_of(params.outputs + first + quad * 4u));
        }
    }
    workgroupBarrier();
    if quad_of(lane) < half() {
        for (var i = 0u; i < LANE_ROWS; i++) {
            let at = row_of(lane, i) * half() + quad;
            let line = place.line + row_of(lane, i);
            let g = acc[i] + bias_of(first + quad * 4u);
            let u = w_at(at);
            var values = vec4f(); // naga does not clear variables in loops
            for (var e = 0u; e < 4u; e++) {
                let inside = local + quad * 4u + e < params.rows;
                let value = select(0.0, activate(params.function, g[e]) * u[e], inside);
                values[e] = value;
                if inside && line < place.end {
                    y[line * params.stride + first + quad * 4u + e] = value;
                }
            }
            put_w(at, values);
        }
    }
    workgroupBarrier();
    if next.parts > 0u {
        carry(local, place, lane);
    }
}
