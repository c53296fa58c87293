// What a norm needs of the inputs of a matrix-vector kernel.

import package::shared::unit::Inputs;

// acc + the squares of v.
fn add_squares(acc: f32, v: vec4f) -> f32 {
    return fma(v.w, v.w, fma(v.z, v.z, fma(v.y, v.y, fma(v.x, v.x, acc))));
}

// acc + the squares of a unit's inputs.
fn squares_of(acc: f32, x: Inputs) -> f32 {
    @if(nibbles)
    return add_squares(add_squares(acc, x.first), x.second);
    @if(!nibbles)
    return add_squares(acc, x.first);
}

fn times(x: Inputs, g: Inputs) -> Inputs {
    @if(nibbles)
    return Inputs(x.first * g.first, x.second * g.second);
    @if(!nibbles)
    return Inputs(x.first * g.first);
}
