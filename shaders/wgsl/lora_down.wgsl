// t = A x for rows whose slot has factors and whose mask bit is on; other elements of t are left alone.
// Grid: one workgroup per row and rank row of the site; lanes split the inputs. Bound by reading A.

import package::shared::a_pool::{a_quad, a_quad_entry};
import package::shared::dots::masked;
import package::shared::lane::{Lane, LANES, group_index};
import package::shared::lora::site;
import package::shared::reduce::sum;
import package::shared::step::{count, lora_on, row_index, step_row};

struct Params {
    k4: u32,   // vec4s of a row of A and of x
    used: u32, // elements used of the last of them
    extent: u32,
}

@group(1) @binding(0) var<uniform> params: Params;
@group(1) @binding(2) var<storage, read> x: array<vec4f>;     // [n, k4]
@group(1) @binding(3) var<storage, read_write> y: array<f32>; // t: [n, parts * R padded to 4]

@compute @workgroup_size(64)
fn main(lane: Lane) {
    let t_width = site.parts * site.rank;
    let line = group_index(lane) / t_width;
    let output = group_index(lane) % t_width;
    if line >= count(params.extent) {
        return;
    }
    let row = step_row(row_index(line, params.extent));
    if !lora_on(row, site.layer) {
        return;
    }
    let index = output / site.rank * site.slots + row.slot;
    let entry = a_quad_entry(index);
    let r = output % site.rank;
    let at = index * site.rank + r - site.first;
    if r >= entry.rank || at >= site.count {
        return;
    }
    var acc = 0.0;
    for (var i = lane.index; i < params.k4; i += LANES) {
        let v = masked(x[line * params.k4 + i], select(4u, params.used, i + 1u == params.k4));
        let w = a_quad(site.head, at * params.k4 + i);
        acc = fma(w.w, v.w, fma(w.z, v.z, fma(w.y, v.y, fma(w.x, v.x, acc))));
    }
    let total = sum(acc, lane, LANES);
    if lane.index == 0u {
        y[line * ((t_width + 3u) / 4u * 4u) + output] = total * entry.scale;
    }
}
