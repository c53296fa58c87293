// The weights of a tile.

import package::shared::lane::Lane;
import package::shared::matrix::{weight, weights};
import package::shared::panels::{Panels, codes_at, offsets_at, scales_at};
import package::shared::tile::{OUTPUTS, STEP, TILE_LANES, put_tile};
@if(int8)
import package::shared::tile_int8::{put_codes, put_scales};

// Puts the weights of the inputs from vec4 `begin` on, of the block's outputs; zeros behind their ends.
@if(!int8)
fn load_weights(p: Panels, rows: u32, k4: u32, begin: u32, block: u32, lane: Lane) {
    let quads = OUTPUTS / 4u;
    for (var at = lane.index; at < quads * STEP; at += TILE_LANES) {
        let i = begin + at / quads;
        let quad = block * quads + at % quads;
        var w = mat4x4f(); // naga does not clear variables in loops
        if i < k4 && quad * 4u < rows {
            w = weights(p, rows, k4, quad, i);
        }
        put_tile(at / quads, at % quads, w);
    }
}

// The same, as codes; any for outputs that there are not.
@if(int8)
fn load_weights(p: Panels, rows: u32, k4: u32, begin: u32, block: u32, lane: Lane) {
    let quads = OUTPUTS / 4u;
    for (var at = lane.index; at < quads * STEP; at += TILE_LANES) {
        let i = begin + at / quads;
        let quad = min(block * quads + at % quads, (rows - 1u) / 4u);
        put_codes(at / quads, at % quads, weight[codes_at(p, quad, i)], i);
        if at < quads {
            put_scales(at, p, weight[scales_at(p, quad, begin)], weight[offsets_at(p, quad, begin)], quad);
        }
    }
}
