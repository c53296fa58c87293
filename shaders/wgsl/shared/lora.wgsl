// y + B t for one output. Pools begin with the site's rank table (as f32, exact), so that one binding holds both.

import package::shared::step::{Row, lora_on};

// A projection of the site: where its outputs begin in a row, how many, and where its factors begin in the B pool.
struct Part {
    start: u32,
    rows: u32,
    offset: u32,
    _pad: u32,
}

// A LoRA site, and the part of its pool that this dispatch has.
struct Site {
    layer: u32,
    slots: u32,
    rank: u32,    // R, the pool's stride; t has parts * R elements
    parts: u32,   // 0: no LoRA
    head: u32,    // where the factors begin in the buffer, after the rank table
    first: u32,   // the first factor (B: element, A: row) of the pool that the buffer holds
    count: u32,   // and how many
    partials: u32, // partial sums of t
    part: array<Part, 4>,
}

@group(1) @binding(6) var<storage, read> t: array<f32>;      // [n, partials, parts * R; a row padded to 4]
@group(1) @binding(7) var<storage, read> b_pool: array<f32>; // [parts, S], then per part [S, rows, R]
@group(1) @binding(8) var<uniform> site: Site;

// Elements of a row of t.
fn t_stride() -> u32 {
    return (site.partials * site.parts * site.rank + 3u) / 4u * 4u;
}

// y + (B t)[output] for `line` of the op, t being whole (see partials.wgsl), terms by ascending rank; y where LoRA is off. Terms whose factors lie in
// another buffer are left to its dispatch.
fn add_lora(y: f32, output: u32, line: u32, row: Row) -> f32 {
    var sum = y;
    if site.parts == 0u || !lora_on(row, site.layer) {
        return sum;
    }
    for (var i = 0u; i < site.parts; i++) {
        let part = site.part[i];
        let o = output - part.start;
        if output < part.start || o >= part.rows {
            continue;
        }
        let rank = u32(b_pool[i * site.slots + row.slot]);
        let begin = part.offset + (row.slot * part.rows + o) * site.rank;
        for (var r = 0u; r < rank; r++) {
            let at = begin + r - site.first;
            if at < site.count {
                sum = fma(b_pool[site.head + at], t[line * t_stride() + i * site.rank + r], sum);
            }
        }
    }
    return sum;
}
