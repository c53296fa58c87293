// + B t for the rows of a tile: slot by slot, the ranks as further inputs. Rows without LoRA, or of other slots, are left
// alone, and so are outputs without factors.

import package::shared::dots::fold;
import package::shared::lane::Lane;
import package::shared::lora::{b_element, b_entry, b_row, site, t, t_stride};
import package::shared::step::{NO_INDEX, lora_on, step_row};
import package::shared::tile::{LANE_ROWS, OUTPUTS, Place, ROWS, Span, Sums, TILE_LANES, output_of, put_weights, quad_of, row_of, weights_of};
import package::shared::tile_room::{DEEP, PITCH, put_x, x_at};

var<workgroup> slot_of: array<u32, ROWS>;
var<workgroup> found: u32;

// Notes the slots of the tile's rows that have LoRA in this layer. A barrier must follow.
fn note_slots(place: Place, layer: u32, lane: Lane) {
    for (var i = lane.index; i < ROWS; i += TILE_LANES) {
        let row = step_row(min(place.line + i, place.end - 1u));
        slot_of[i] = select(NO_INDEX, row.slot, place.line + i < place.end && lora_on(row, layer));
    }
}

// The lowest slot from `least` on that a row of the tile has; NO_INDEX if there is none. All lanes call.
fn slot_from(least: u32, lane: Lane) -> u32 {
    workgroupBarrier();
    if lane.index == 0u {
        var first = NO_INDEX;
        for (var i = 0u; i < ROWS; i++) {
            first = select(first, min(first, slot_of[i]), slot_of[i] >= least);
        }
        found = first;
    }
    return workgroupUniformLoad(&found);
}

// t of a line for rank r of part i: the sum of its partial sums.
fn t_of(line: u32, i: u32, r: u32) -> f32 {
    let t_width = site.parts * site.rank;
    var sum = 0.0;
    for (var p = 0u; p < site.partials; p++) {
        sum += t[line * t_stride() + p * t_width + i * site.rank + r];
    }
    return sum;
}

// B and t of `ranks` ranks from `begin` on, to where weights and inputs were; zeros fill the last vec4 up.
fn put_factors(i: u32, slot: u32, begin: u32, ranks: u32, span: Span, line: u32, lane: Lane) {
    let part = site.part[i];
    let scale = b_entry(i, slot).scale;
    let quads = OUTPUTS / 4u;
    for (var at = lane.index; at < quads * ((ranks + 3u) / 4u); at += TILE_LANES) {
        var b = mat4x4f(); // naga does not clear variables in loops
        for (var e = 0u; e < 4u; e++) {
            let o = output_of(span, at % quads) + e - part.start;
            for (var r = 0u; r < 4u; r++) {
                let rank = at / quads * 4u + r;
                if o < part.rows && rank < ranks {
                    b[r][e] = b_element(b_row(part, slot, o), begin + rank);
                }
            }
        }
        put_weights(at / quads, at % quads, b);
    }
    // A lane writes whole vec4s: those of one write its elements in turn on some devices.
    let width = (ranks + 3u) / 4u;
    for (var at = lane.index; at < ROWS * width; at += TILE_LANES) {
        let row = at / width;
        var values = vec4f(); // see above
        for (var e = 0u; e < 4u; e++) {
            let r = at % width * 4u + e;
            if slot_of[row] == slot && r < ranks {
                values[e] = t_of(line + row, i, begin + r) * scale;
            }
        }
        put_x(row * PITCH + at % width, values);
    }
}

// All lanes call.
fn add_lora(acc: ptr<function, Sums>, span: Span, place: Place, lane: Lane) {
    if site.parts == 0u {
        return;
    }
    note_slots(place, site.layer, lane);
    let outputs = vec4u(output_of(span, quad_of(lane))) + vec4u(0u, 1u, 2u, 3u);
    for (var slot = slot_from(0u, lane); slot != NO_INDEX; slot = slot_from(slot + 1u, lane)) {
        for (var i = 0u; i < site.parts; i++) {
            let rank = b_entry(i, slot).rank;
            let inside = outputs - vec4u(site.part[i].start) < vec4u(site.part[i].rows);
            for (var begin = 0u; begin < rank; begin += 4u * DEEP) {
                let ranks = min(rank - begin, 4u * DEEP);
                put_factors(i, slot, begin, ranks, span, place.line, lane);
                workgroupBarrier();
                for (var k = 0u; k < (ranks + 3u) / 4u; k++) {
                    let b = weights_of(k, quad_of(lane));
                    for (var r = 0u; r < LANE_ROWS; r++) {
                        let row = row_of(lane, r);
                        if slot_of[row] == slot {
                            (*acc)[r] = select((*acc)[r], fold((*acc)[r], b, x_at(row * PITCH + k)), inside);
                        }
                    }
                }
                workgroupBarrier();
            }
        }
    }
}
