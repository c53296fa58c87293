// t = A v of the projection behind a launch, by the launch that makes v: each workgroup writes the sums over its own
// elements of v. Pools as in lora.wgsl.

import package::shared::a_pool::{a_element, a_entry};
import package::shared::lane::Lane;
import package::shared::lora::Site;
import package::shared::step::{lora_on, row_index, step_row};

@group(1) @binding(10) var<storage, read_write> t_out: array<f32>; // [n, partials, parts * R; a row padded to 4]
@group(1) @binding(11) var<uniform> next: Site;                   // 0 parts: nothing is carried

// What the workgroup has of v: a head of at most so many elements, or 16 outputs of 8 rows. (No override: naga 30 fails
// where one is declared behind an array whose size is computed from another.)
const VALUES = 512u;
var<workgroup> values: array<f32, VALUES>;

const SHARES = 8u; // lanes that split the columns of a row of A
var<workgroup> shares: array<f32, 256>;

// Elements of a row of t.
fn t_out_stride() -> u32 {
    return (next.partials * next.parts * next.rank + 3u) / 4u * 4u;
}

// What a workgroup has of v: `count` elements from `first` on, of `cols`, for `lines` lines from `line` on.
struct Carried {
    line: u32,
    lines: u32,
    extent: u32,
    partial: u32,
    first: u32,
    count: u32,
    cols: u32,
    stride: u32, // between the `values` of two lines
}

// Writes the partial sums: A's columns times values. All of `lanes` lanes (at most 256) call, behind a barrier after the
// values were written.
fn carry(v: Carried, lane: Lane, lanes: u32) {
    if next.parts == 0u {
        return;
    }
    let t_width = next.parts * next.rank;
    let share = lane.index % SHARES;
    for (var begin = 0u; begin < v.lines * t_width; begin += lanes / SHARES) {
        let index = begin + lane.index / SHARES;
        let inside = index < v.lines * t_width;
        let c = select(0u, index / t_width, inside);
        let output = select(0u, index % t_width, inside);
        let row = step_row(row_index(v.line + c, v.extent));
        let on = inside && lora_on(row, next.layer);
        let entry = output / next.rank * next.slots + select(0u, row.slot, on);
        let r = output % next.rank;
        let used = on && r < a_entry(entry).rank;
        var sum = 0.0;
        if used {
            let a = (entry * next.rank + r) * ((v.cols + 3u) / 4u * 4u) + v.first;
            for (var i = share; i < v.count; i += SHARES) {
                sum = fma(a_element(next.head, a + i), values[c * v.stride + i], sum);
            }
        }
        shares[lane.index] = sum;
        workgroupBarrier();
        if used && share == 0u {
            for (var i = 1u; i < SHARES; i++) {
                sum += shares[lane.index + i];
            }
            t_out[(v.line + c) * t_out_stride() + v.partial * t_width + output] = sum * a_entry(entry).scale;
        }
        workgroupBarrier();
    }
}
