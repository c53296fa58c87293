// y + B t for one output. Pools begin with the site's table (factors.wgsl), so that one binding holds both.

import package::shared::factors::{Entry, PER_WORD, element_of, entry_of};
import package::shared::step::{Row, lora_on};

// A projection of the site: where its outputs begin in a row, how many, and which row of the B pool is its first.
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
    rank: u32,    // R, the ranks that slots have room for; t has parts * R elements
    parts: u32,   // 0: no LoRA
    head: u32,    // words of the table, behind which the factors begin
    first: u32,   // the first row of the pool that the buffer holds
    count: u32,   // and how many
    partials: u32, // partial sums of t
    part: array<Part, 4>,
}

@group(1) @binding(6) var<storage, read> t: array<f32>;      // [n, partials, parts * R; a row padded to 4]
@group(1) @binding(7) var<storage, read> b_pool: array<u32>; // table [parts, S], then per part [S, rows, R padded to 2]
@group(1) @binding(8) var<uniform> site: Site;

// Elements of a row of t.
fn t_stride() -> u32 {
    return (site.partials * site.parts * site.rank + 3u) / 4u * 4u;
}

// What the table says of a part and a slot.
fn b_entry(part: u32, slot: u32) -> Entry {
    let at = 2u * (part * site.slots + slot);
    return entry_of(vec2u(b_pool[at], b_pool[at + 1u]));
}

// The row of the pool, counted from the buffer's first, that output `o` of a part has for a slot.
fn b_row(part: Part, slot: u32, o: u32) -> u32 {
    return part.offset + slot * part.rows + o - site.first;
}

// Element r of such a row, without the entry's scale: t is multiplied by that.
fn b_element(row: u32, r: u32) -> f32 {
    let at = row * ((site.rank + 1u) / 2u * 2u) + r;
    return element_of(b_pool[site.head + at / PER_WORD], at);
}

// y + (B t)[output] for `line` of the op, t being whole (see partials.wgsl), terms by ascending rank; y where LoRA is off.
// A row of B that lies in another buffer is left to its dispatch.
fn add_lora(y: f32, output: u32, line: u32, row: Row) -> f32 {
    var sum = y;
    if site.parts == 0u || !lora_on(row, site.layer) {
        return sum;
    }
    for (var i = 0u; i < site.parts; i++) {
        let part = site.part[i];
        let o = output - part.start;
        let b = b_row(part, row.slot, o);
        if output < part.start || o >= part.rows || b >= site.count {
            continue;
        }
        let entry = b_entry(i, row.slot);
        for (var r = 0u; r < entry.rank; r++) {
            sum = fma(b_element(b, r), t[line * t_stride() + i * site.rank + r] * entry.scale, sum);
        }
    }
    return sum;
}
