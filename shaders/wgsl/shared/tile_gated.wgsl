// The weights of a tile of a gated MLP: the first half of its quads are G's, the second the same of U.

import package::shared::gated::{gate, gate_weights, up, up_weights};
import package::shared::lane::Lane;
import package::shared::panels::{Panels, codes_at, offsets_at, scales_at};
import package::shared::tile::{OUTPUTS, STEP, TILE_LANES, put_tile};
@if(int8)
import package::shared::tile_int8::{put_codes, put_scales};

// Puts the weights of the inputs from vec4 `begin` on, of the block's outputs; zeros behind their ends.
@if(!int8)
fn load_weights(p: Panels, rows: u32, k4: u32, begin: u32, block: u32, lane: Lane) {
    let quads = OUTPUTS / 4u;
    let half = quads / 2u;
    for (var at = lane.index; at < quads * STEP; at += TILE_LANES) {
        let i = begin + at / quads;
        let quad = block * half + at % half;
        var w = mat4x4f(); // naga does not clear variables in loops
        if i < k4 && quad * 4u < rows {
            if at % quads < half {
                w = gate_weights(p, rows, k4, quad, i);
            } else {
                w = up_weights(p, rows, k4, quad, i);
            }
        }
        put_tile(at / quads, at % quads, w);
    }
}

// The same, as codes; any for outputs that there are not.
@if(int8)
fn load_weights(p: Panels, rows: u32, k4: u32, begin: u32, block: u32, lane: Lane) {
    let quads = OUTPUTS / 4u;
    let half = quads / 2u;
    for (var at = lane.index; at < quads * STEP; at += TILE_LANES) {
        let i = begin + at / quads;
        let quad = min(block * half + at % half, (rows - 1u) / 4u);
        let places = vec3u(codes_at(p, quad, i), scales_at(p, quad, begin), offsets_at(p, quad, begin));
        if at % quads < half {
            put_codes(at / quads, at % quads, gate[places.x], i);
        } else {
            put_codes(at / quads, at % quads, up[places.x], i);
        }
        if at < half {
            put_scales(at, p, gate[places.y], gate[places.z], quad);
        } else if at < quads {
            put_scales(at, p, up[places.y], up[places.z], quad);
        }
    }
}
