// The inputs of a tile.

import package::shared::lane::Lane;
import package::shared::tile::{Place, ROWS, STEP, TILE_LANES, put_inputs};

@group(1) @binding(2) var<storage, read> x: array<vec4f>; // [n, k4]

// Puts the inputs from vec4 `begin` on, zeros behind their end.
fn load_inputs(begin: u32, k4: u32, used: u32, place: Place, lane: Lane) {
    for (var at = lane.index; at < ROWS * STEP; at += TILE_LANES) {
        let i = begin + at % STEP;
        put_inputs(at, i, k4, used, x[min(place.line + at / STEP, place.end - 1u) * k4 + min(i, k4 - 1u)]);
    }
}
