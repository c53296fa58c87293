// Rows of A as the weights of a tile: its outputs are the rank rows of one slot of the site that is carried.

import package::shared::a_pool::{a_quad, a_quad_entry};
import package::shared::carry::next;
import package::shared::lane::Lane;
import package::shared::step::NO_INDEX;
import package::shared::tile::{OUTPUTS, STEP, TILE_LANES, put_tile};

// Which row of the A pool is a rank row of a slot; NO_INDEX if the slot has not so many.
fn rank_row(slot: u32, output: u32) -> u32 {
    let entry = min(output / next.rank, next.parts - 1u) * next.slots + slot;
    let r = output % next.rank;
    if output >= next.parts * next.rank || r >= a_quad_entry(entry).rank {
        return NO_INDEX;
    }
    return entry * next.rank + r;
}

// What the sums of such a row are multiplied by.
fn rank_scale(row: u32) -> f32 {
    return a_quad_entry(row / next.rank).scale;
}

// Puts a slot's factors from vec4 `begin` of k4 on, as load_weights does weights.
fn load_factors(k4: u32, begin: u32, block: u32, slot: u32, lane: Lane) {
    let quads = OUTPUTS / 4u;
    for (var at = lane.index; at < quads * STEP; at += TILE_LANES) {
        var rows = mat4x4f(); // naga does not clear variables in loops
        for (var e = 0u; e < 4u; e++) {
            let row = rank_row(slot, block * OUTPUTS + at % quads * 4u + e);
            if row != NO_INDEX && begin + at / quads < k4 {
                rows[e] = a_quad(next.head, row * k4 + begin + at / quads);
            }
        }
        put_tile(at / quads, at % quads, transpose(rows));
    }
}
