// y = f(W x + b + B t) + r for rows of class prompt.
// Grid: one workgroup per OUTPUTS outputs and ROWS rows of x, see tile.wgsl. Bound by arithmetic.

import package::shared::functions::activate;
import package::shared::lane::Lane;
import package::shared::panels::{Panels, prepare};
import package::shared::tile::{LANE_ROWS, OUTPUTS, Products, STEP, Span, TILE_LANES, multiply, place, quad_of, row_of, sums_of};
import package::shared::tile_inputs::load_inputs;
import package::shared::tile_lora::add_lora;
import package::shared::tile_matrix::load_weights;

// As in project.wgsl.
struct Params {
    panels: Panels,
    k4: u32,
    used: u32,
    rows: u32,
    first: u32,
    stride: u32,
    extent: u32,
    function: u32,
    biased: u32,
    residual: u32,
}

@group(1) @binding(0) var<uniform> params: Params;
@group(1) @binding(3) var<storage, read> bias: array<f32>;      // [outputs of W]
@group(1) @binding(4) var<storage, read> r: array<f32>;         // [n, stride]
@group(1) @binding(5) var<storage, read_write> y: array<f32>;   // [n, stride]

@compute @workgroup_size(TILE_LANES)
fn main(lane: Lane) {
    let place = place(lane);
    if place.block * OUTPUTS >= params.rows {
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
    add_lora(&acc, Span(params.first + place.block * OUTPUTS, OUTPUTS, 0u), place, lane);
    for (var i = 0u; i < LANE_ROWS; i++) {
        let line = place.line + row_of(lane, i);
        for (var e = 0u; e < 4u; e++) {
            let local = place.block * OUTPUTS + quad_of(lane) * 4u + e;
            if line >= place.end || local >= params.rows {
                continue;
            }
            let output = params.first + local;
            var value = acc[i][e];
            if params.biased != 0u {
                value += bias[output];
            }
            value = activate(params.function, value);
            if params.residual != 0u {
                value += r[line * params.stride + output];
            }
            y[line * params.stride + output] = value;
        }
    }
}
