// t = the column of A at the row's token, for rows whose slot has factors and whose mask bit is on; other elements of
// t are left alone.
// Grid: one invocation per row and rank row of the site. Bound by latency: a row reads one element per rank.

import package::shared::a_pool::{a_element, a_entry};
import package::shared::lane::{Lane, LANES, group_index};
import package::shared::lora::site;
import package::shared::step::{ROWS, FROM_STATE, count, lora_on, step_row};

struct Params {
    stride: u32,       // elements of a row of A: the vocabulary, padded to 4
    state_stride: u32, // words of a sequence's state
}

@group(1) @binding(0) var<uniform> params: Params;
@group(1) @binding(2) var<storage, read_write> state: array<atomic<u32>>; // [sequences, last token + seen bits]
@group(1) @binding(3) var<storage, read_write> y: array<f32>;             // t: [n, parts * R padded to 4]

@compute @workgroup_size(64)
fn main(lane: Lane) {
    let t_width = site.parts * site.rank;
    let line = (group_index(lane) * LANES + lane.index) / t_width;
    let output = (group_index(lane) * LANES + lane.index) % t_width;
    if line >= count(ROWS) {
        return;
    }
    let row = step_row(line);
    if !lora_on(row, site.layer) {
        return;
    }
    let index = output / site.rank * site.slots + row.slot;
    let entry = a_entry(index);
    let r = output % site.rank;
    let at = index * site.rank + r - site.first;
    if r >= entry.rank || at >= site.count {
        return;
    }
    var token = row.token;
    if (row.flags & FROM_STATE) != 0u {
        token = atomicLoad(&state[row.sequence * params.state_stride]);
    }
    let element = a_element(site.head, at * params.stride + token);
    y[line * ((t_width + 3u) / 4u * 4u) + output] = element * entry.scale;
}
