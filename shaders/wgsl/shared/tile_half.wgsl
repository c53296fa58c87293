// Weights and inputs in f16, products and sums in f32: half of the bytes go through workgroup memory, and half as many
// barriers are needed.

import package::shared::range::in_range;
import package::shared::tile::OUTPUTS;
import package::shared::tile_room::{PITCH, w_tile, x_tile};

fn halves(v: vec4f) -> vec2u {
    let inside = in_range(v);
    return vec2u(pack2x16float(inside.xy), pack2x16float(inside.zw));
}

fn floats(words: vec2u) -> vec4f {
    return vec4f(unpack2x16float(words.x), unpack2x16float(words.y));
}

fn put_half_weights(i: u32, quad: u32, w: mat4x4f) {
    for (var b = 0u; b < 4u; b++) {
        w_tile[(i * 4u + b) * (OUTPUTS / 4u) + quad] = halves(w[b]);
    }
}

fn half_weights_of(i: u32, quad: u32) -> mat4x4f {
    let at = i * OUTPUTS + quad;
    let pitch = OUTPUTS / 4u;
    return mat4x4f(
        floats(w_tile[at]), floats(w_tile[at + pitch]), floats(w_tile[at + 2u * pitch]), floats(w_tile[at + 3u * pitch]));
}

fn put_half_inputs(row: u32, i: u32, v: vec4f) {
    x_tile[row * (2u * PITCH) + i] = halves(v);
}

fn half_inputs_of(row: u32, i: u32) -> vec4f {
    return floats(x_tile[row * (2u * PITCH) + i]);
}
