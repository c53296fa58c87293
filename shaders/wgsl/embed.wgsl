// y = table[token], and the token is marked as seen in the row's sequence.
// Grid: one workgroup per row. Bound by latency: a row reads one row of the table.

import package::shared::lane::{Lane, LANES, group_index};
import package::shared::step::{ROWS, FROM_STATE, count, step_row};
import package::shared::panels::{Panels, codes_at, decode, offsets_at, prepare, scales_at};
import package::shared::weights::{Packed, unpack};

struct Params {
    panels: Panels,    // of a quantized table
    k4: u32,           // vec4s of a row
    first: u32,        // the first id of this part of the table
    rows: u32,         // and how many; other ids are left to other dispatches
    state_stride: u32, // words of a sequence's state
}

@group(1) @binding(0) var<uniform> params: Params;
@group(1) @binding(1) var<storage, read> table: array<Packed>;              // [rows, k4], or panels
@group(1) @binding(2) var<storage, read_write> state: array<atomic<u32>>;   // [sequences, last token + seen bits]
@group(1) @binding(3) var<storage, read_write> y: array<vec4f>;             // [n, k4]

// Elements 4 i .. 4 i + 3 of a row of the table.
@if(nibbles || bytes)
fn elements(id: u32, i: u32) -> vec4f {
    let p = params.panels;
    let quad = id / 4u;
    let scales = table[scales_at(p, quad, i)];
    let w = decode(p, table[codes_at(p, quad, i)], scales, table[offsets_at(p, quad, i)], quad, i);
    return transpose(w)[id % 4u];
}

@if(f32 || f16 || bf16)
fn elements(id: u32, i: u32) -> vec4f {
    return unpack(table[id * params.k4 + i]);
}

@compute @workgroup_size(64)
fn main(lane: Lane) {
    @if(nibbles)
    prepare(params.panels, lane.index);
    let line = group_index(lane);
    if line >= count(ROWS) {
        return;
    }
    let row = step_row(line);
    let own = row.sequence * params.state_stride;
    var token = row.token;
    if (row.flags & FROM_STATE) != 0u {
        token = atomicLoad(&state[own]);
    }
    let id = token - params.first;
    if token < params.first || id >= params.rows {
        return;
    }
    if lane.index == 0u {
        atomicOr(&state[own + 1u + token / 32u], 1u << (token % 32u));
    }
    for (var i = lane.index; i < params.k4; i += LANES) {
        y[line * params.k4 + i] = elements(id, i);
    }
}
