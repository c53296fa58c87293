// The weights of a tile of a gated MLP: the first half of its quads are G's, the second the same of U.

import package::shared::gated::{gate_weights, up_weights};
import package::shared::lane::Lane;
import package::shared::panels::Panels;
import package::shared::tile::{OUTPUTS, STEP, TILE_LANES, put_weights};

// Puts the weights of the inputs from vec4 `begin` on, of the block's outputs; zeros behind their ends.
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
        put_weights(at / quads, at % quads, w);
    }
}
