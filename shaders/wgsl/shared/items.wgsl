// How the host divides attention over workgroups: in items, each a chunk of some rows that see the same positions of it
// on the same pages (but for a window, which may hide more from some). The rows that have items are the first ones.
// Behind the step's samples lie a word for each of them (a member), then one for each item.

import package::shared::chunks::CHUNK;
import package::shared::step::{ROWS_AT, step, step_row};

const MEMBERS = 8u; // of an item, at most

// Members `first` and so on.
struct Item {
    chunk: u32,
    first: u32,
    count: u32,
}

// A row, and how many chunks those before it have.
struct Member {
    line: u32,
    chunks: u32,
}

fn items() -> u32 {
    return step[0].w;
}

// The rows that items are of.
fn divided() -> u32 {
    return step[1].x;
}

fn members_at() -> u32 {
    return ROWS_AT + (step[0].x + step[0].y) * 3u;
}

fn member(index: u32) -> Member {
    let word = step[members_at() + index / 4u][index % 4u];
    return Member(word & 0xffu, word >> 8u);
}

fn item(index: u32) -> Item {
    let word = step[members_at() + (divided() + 3u) / 4u + index / 4u][index % 4u];
    return Item(word >> 16u, (word >> 8u) & 0xffu, word & 0xffu);
}

// The positions x .. y that a row sees through a window.
fn sight(line: u32, window: u32) -> vec2u {
    let end = step_row(line).position + 1u;
    return vec2u(end - min(end, window), end);
}

// Those of them that are in a chunk.
fn within(sight: vec2u, chunk: u32) -> vec2u {
    return clamp(sight, vec2u(chunk * CHUNK), vec2u((chunk + 1u) * CHUNK));
}

// How many chunks they are in.
fn spanned(sight: vec2u) -> u32 {
    return (sight.y - 1u) / CHUNK - sight.x / CHUNK + 1u;
}

// How many members of an item, from its `i`-th on, see the same of the chunk; at most `most` are looked at.
fn alike(it: Item, i: u32, most: u32, window: u32) -> u32 {
    let seen = within(sight(member(it.first + i).line, window), it.chunk);
    var n = 1u;
    for (; n < most && i + n < it.count; n++) {
        if any(within(sight(member(it.first + i + n).line, window), it.chunk) != seen) {
            break;
        }
    }
    return n;
}
