// Products by cooperative matrices of 16 x 16 x 16: weights and inputs in f16, sums in f32. A tile is 64 x 64, and each of
// its four subgroups of 32 lanes has 32 rows and 32 outputs.
// Validated by naga, but not yet run: no device that has them was at hand. Devices are tested first (gpu/selftest.rs).

import package::shared::lane::Lane;
import package::shared::range::in_range;
import package::shared::tile::{LANE_ROWS, OUTPUTS, ROWS, STEP, Sums, quad_of, row_of};

const SIZE = 16u;
const W_PITCH = 72u; // elements between two inputs of w_half; a row of x_half has X_PITCH
const X_PITCH = 40u;

var<workgroup> w_half: array<f16, 2304>; // [inputs of a step, W_PITCH]
var<workgroup> x_half: array<f16, 2560>; // [rows, X_PITCH]
var<workgroup> sums: array<f32, 4096>;   // [rows, outputs]

struct Matrices {
    c00: coop_mat16x16<f32, C>,
    c01: coop_mat16x16<f32, C>,
    c10: coop_mat16x16<f32, C>,
    c11: coop_mat16x16<f32, C>,
}

fn put_half_weights(i: u32, quad: u32, w: mat4x4f) {
    for (var b = 0u; b < 4u; b++) {
        let inside = in_range(w[b]);
        for (var e = 0u; e < 4u; e++) {
            w_half[(i * 4u + b) * W_PITCH + quad * 4u + e] = f16(inside[e]);
        }
    }
}

fn put_half_inputs(row: u32, i: u32, v: vec4f) {
    let inside = in_range(v);
    for (var e = 0u; e < 4u; e++) {
        x_half[row * X_PITCH + i * 4u + e] = f16(inside[e]);
    }
}

// The subgroup's first row and output.
fn corner(lane: Lane) -> vec2u {
    return vec2u(lane.subgroup % 2u, lane.subgroup / 2u) * 2u * SIZE;
}

fn add_products(p: ptr<function, Matrices>, lane: Lane) {
    let at = corner(lane);
    for (var k = 0u; k < 4u * STEP; k += SIZE) {
        let a0 = coopLoadT<coop_mat16x16<f16, A>>(&x_half[at.x * X_PITCH + k], X_PITCH);
        let a1 = coopLoadT<coop_mat16x16<f16, A>>(&x_half[(at.x + SIZE) * X_PITCH + k], X_PITCH);
        let b0 = coopLoadT<coop_mat16x16<f16, B>>(&w_half[k * W_PITCH + at.y], W_PITCH);
        let b1 = coopLoadT<coop_mat16x16<f16, B>>(&w_half[k * W_PITCH + at.y + SIZE], W_PITCH);
        (*p).c00 = coopMultiplyAdd(a0, b0, (*p).c00);
        (*p).c01 = coopMultiplyAdd(a0, b1, (*p).c01);
        (*p).c10 = coopMultiplyAdd(a1, b0, (*p).c10);
        (*p).c11 = coopMultiplyAdd(a1, b1, (*p).c11);
    }
}

// The lane's sums, through workgroup memory. All lanes call.
fn sums_of_matrices(p: ptr<function, Matrices>, lane: Lane) -> Sums {
    let at = corner(lane);
    coopStoreT((*p).c00, &sums[at.x * OUTPUTS + at.y], OUTPUTS);
    coopStoreT((*p).c01, &sums[at.x * OUTPUTS + at.y + SIZE], OUTPUTS);
    coopStoreT((*p).c10, &sums[(at.x + SIZE) * OUTPUTS + at.y], OUTPUTS);
    coopStoreT((*p).c11, &sums[(at.x + SIZE) * OUTPUTS + at.y + SIZE], OUTPUTS);
    workgroupBarrier();
    var own: Sums;
    for (var r = 0u; r < LANE_ROWS; r++) {
        let first = row_of(lane, r) * OUTPUTS + quad_of(lane) * 4u;
        own[r] = vec4f(sums[first], sums[first + 1u], sums[first + 2u], sums[first + 3u]);
    }
    return own;
}
