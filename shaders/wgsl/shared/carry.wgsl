// t = A v of the projection behind a launch, by the launch that makes v: each workgroup writes the sums over its own
// elements of v. Pools as in lora.wgsl.

import package::shared::lane::{Lane, LANES};
import package::shared::lora::Site;
import package::shared::step::{Row, lora_on};

@group(1) @binding(9) var<storage, read> a_pool: array<f32>;      // [parts, S] ranks, then [parts, S, R, cols padded to 4]
@group(1) @binding(10) var<storage, read_write> t_out: array<f32>; // [n, partials, parts * R; a row padded to 4]
@group(1) @binding(11) var<uniform> next: Site;                   // 0 parts: nothing is carried

// What the workgroup has of v. (naga 30 loses an override that no expression names: hence the product.)
@id(1) override VALUES: u32 = 128u;
var<workgroup> values: array<f32, VALUES * 1u>;

const SHARES = 8u; // lanes that split the columns of a row of A
var<workgroup> shares: array<f32, LANES>;

// Elements of a row of t.
fn t_out_stride() -> u32 {
    return (next.partials * next.parts * next.rank + 3u) / 4u * 4u;
}

// Writes the partial sum `partial` of a row: A's `count` columns from `first` on times as many `values` from `at` on.
// All lanes call, behind a barrier after the values were written.
fn carry(line: u32, row: Row, partial: u32, first: u32, at: u32, count: u32, cols: u32, lane: Lane) {
    if next.parts == 0u || !lora_on(row, next.layer) {
        return;
    }
    let t_width = next.parts * next.rank;
    let share = lane.index % SHARES;
    for (var begin = 0u; begin < t_width; begin += LANES / SHARES) {
        let output = begin + lane.index / SHARES;
        let entry = output / next.rank * next.slots + row.slot;
        let r = output % next.rank;
        let used = output < t_width && r < u32(a_pool[min(entry, next.parts * next.slots - 1u)]);
        var sum = 0.0;
        if used {
            let a = next.head + (entry * next.rank + r) * ((cols + 3u) / 4u * 4u) + first;
            for (var i = share; i < count; i += SHARES) {
                sum = fma(a_pool[a + i], values[at + i], sum);
            }
        }
        shares[lane.index] = sum;
        workgroupBarrier();
        if used && share == 0u {
            for (var i = 1u; i < SHARES; i++) {
                sum += shares[lane.index + i];
            }
            t_out[line * t_out_stride() + partial * t_width + output] = sum;
        }
        workgroupBarrier();
    }
}
