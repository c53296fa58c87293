// The KV cache of a layer by pages of 64 positions, found through the tables behind the step's rows and samples. A page has
// a block for each key head: elements [64, head_dim padded to 4] in quads and, of codes, their scales [64]. A buffer holds
// some consecutive heads of all pages; where they do not fit one, each op runs once per buffer and leaves the other heads
// alone.

import package::shared::step::step;

struct Cache {
    kv_heads: u32,
    head_dim: u32,
    first: u32,  // the first head of the buffer
    heads: u32,  // and how many
    tables: u32, // where the tables begin in the step's buffer, in vec4us
    stride: u32, // entries of a table
    _pad: u32,   // uniform structs within structs take whole vec4s
    _pad2: u32,
}

const PAGE = 64u;

// Four elements as they are stored.
@if(f32)
alias Quad = vec4f;
@if(f16)
alias Quad = vec2u;
@if(bytes)
alias Quad = u32;

@if(f32)
fn unquad(q: Quad) -> vec4f {
    return q;
}

@if(f16)
fn unquad(q: Quad) -> vec4f {
    return vec4f(unpack2x16float(q.x), unpack2x16float(q.y));
}

@if(bytes)
fn unquad(q: Quad) -> vec4f {
    return vec4f((vec4i(i32(q)) << vec4u(24u, 16u, 8u, 0u)) >> vec4u(24u));
}

// Quads of a head.
fn quads(cache: Cache) -> u32 {
    return (cache.head_dim + 3u) / 4u;
}

// Where a block has its scales, from its beginning on.
fn scales_at(cache: Cache) -> u32 {
    return PAGE * quads(cache);
}

fn block_size(cache: Cache) -> u32 {
    @if(f32 || f16)
    return PAGE * quads(cache);
    @if(bytes)
    return PAGE * (quads(cache) + 1u);
}

// Whether another buffer has this head.
fn elsewhere(cache: Cache, kv_head: u32) -> bool {
    return kv_head - cache.first >= cache.heads;
}

// The quad with which the block begins that has a head's elements at a position of a sequence.
fn block(cache: Cache, kv_head: u32, sequence: u32, position: u32) -> u32 {
    let at = sequence * cache.stride + position / PAGE;
    let page = step[cache.tables + at / 4u][at % 4u];
    return (page * cache.heads + kv_head - cache.first) * block_size(cache);
}
