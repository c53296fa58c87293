// Rotation of the pairs (i, i + pairs) of a head by the row's position.

import package::shared::step::{Row, LONG_ROPE};

@group(1) @binding(3) var<storage, read> angles: array<vec2f>; // cos, sin: [sets, positions, pairs]

// Element i of the rotated head: `own` is element i, `other` its pair's other one (see `partner`).
fn rotated(own: f32, other: f32, i: u32, row: Row, pairs: u32, positions: u32) -> f32 {
    if i >= 2u * pairs {
        return own;
    }
    let factors = select(0u, 1u, (row.flags & LONG_ROPE) != 0u);
    let angle = angles[(factors * positions + row.position) * pairs + i - select(pairs, 0u, i < pairs)];
    return fma(own, angle.x, select(other, -other, i < pairs) * angle.y);
}

// The index of the pair's other element; i itself where nothing is rotated.
fn partner(i: u32, pairs: u32) -> u32 {
    if i >= 2u * pairs {
        return i;
    }
    return select(i - pairs, i + pairs, i < pairs);
}
