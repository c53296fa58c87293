// The inputs of a matrix-vector kernel.

import package::shared::dots::inside;
import package::shared::unit::{Inputs, vec4_of};

@group(1) @binding(2) var<storage, read> x: array<vec4f>; // [n, k4]

// Vec4 i of a row of x, of which the last has `used` elements; zeros behind its end.
fn input(line: u32, i: u32, k4: u32, used: u32) -> vec4f {
    return inside(x[line * k4 + min(i, k4 - 1u)], i, k4, used);
}

// Those of unit u.
fn inputs(line: u32, u: u32, k4: u32, used: u32) -> Inputs {
    let i = vec4_of(u);
    @if(nibbles)
    return Inputs(input(line, i, k4, used), input(line, i + 4u, k4, used));
    @if(!nibbles)
    return Inputs(input(line, i, k4, used));
}
