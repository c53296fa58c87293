// The A pool of a site, read by elements or by quads: a kernel imports functions of one kind alone. What they give lacks
// the entry's scale: a sum is multiplied by it at its end.

import package::shared::factors::{Entry, PER_WORD, QUAD_WORDS, Quad, element_of, entry_of, unquad};

// [parts, S] entries of the table, then [parts, S, R] rows of the inputs padded to 4.
@group(1) @binding(9) var<storage, read> words: array<u32>;
@group(1) @binding(9) var<storage, read> quads: array<Quad>;

// The table's entry `index`.
fn a_entry(index: u32) -> Entry {
    return entry_of(vec2u(words[2u * index], words[2u * index + 1u]));
}

// Element `at` of those behind the table, which has `head` words.
fn a_element(head: u32, at: u32) -> f32 {
    return element_of(words[head + at / PER_WORD], at);
}

// As `a_entry`, by quads.
fn a_quad_entry(index: u32) -> Entry {
    @if(!halves) {
        let both = quads[index / 2u];
        return entry_of(select(both.xy, both.zw, index % 2u == 1u));
    }
    @if(halves)
    return entry_of(quads[index]);
}

// Elements 4 at .. 4 at + 3 of those behind the table.
fn a_quad(head: u32, at: u32) -> vec4f {
    return unquad(quads[head / QUAD_WORDS + at]);
}
