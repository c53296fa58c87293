// The weights of a tile.

import package::shared::lane::Lane;
import package::shared::matrix::weights;
import package::shared::panels::Panels;
import package::shared::tile::{OUTPUTS, STEP, TILE_LANES, put_weights};

// Puts the weights of the inputs from vec4 `begin` on, of the block's outputs; zeros behind their ends.
fn load_weights(p: Panels, rows: u32, k4: u32, begin: u32, block: u32, lane: Lane) {
    let quads = OUTPUTS / 4u;
    for (var at = lane.index; at < quads * STEP; at += TILE_LANES) {
        let i = begin + at / quads;
        let quad = block * quads + at % quads;
        var w = mat4x4f(); // naga does not clear variables in loops
        if i < k4 && quad * 4u < rows {
            w = weights(p, rows, k4, quad, i);
        }
        put_weights(at / quads, at % quads, w);
    }
}
