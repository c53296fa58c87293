// Dot products of four weight rows with COLS activation rows. Whatever COLS is, each result is summed in the same
// order: a lane's vec4s ascending, their elements ascending by fma, then the lanes.

import package::shared::lane::{Lane, LANES};

// Activation rows that a workgroup computes for.
@id(0) override COLS: u32 = 1u;
const MAX_COLS = 8u;

// Per activation row, the sums of the four weight rows.
alias Sums = array<vec4f, MAX_COLS>;

var<workgroup> partial: array<vec4f, COLS * LANES>;

// acc + w x; w[i] holds element i of the four weight rows.
fn fold(acc: vec4f, w: mat4x4f, x: vec4f) -> vec4f {
    return fma(w[3], vec4f(x.w), fma(w[2], vec4f(x.z), fma(w[1], vec4f(x.y), fma(w[0], vec4f(x.x), acc))));
}

// The first `used` elements of v, zeros for the others: rows are padded to whole vec4s, and their padding is undefined.
fn masked(v: vec4f, used: u32) -> vec4f {
    return select(vec4f(), v, vec4u(0u, 1u, 2u, 3u) < vec4u(used));
}

// Sums over the lanes; then `total` may be called. A barrier must lie between two calls.
@if(subgroups)
fn reduce(acc: ptr<function, Sums>, lane: Lane) {
    for (var c = 0u; c < COLS; c++) {
        let part = subgroupAdd((*acc)[c]);
        if lane.in_subgroup == 0u {
            partial[c * LANES + lane.subgroup] = part;
        }
    }
    workgroupBarrier();
}

@if(!subgroups)
fn reduce(acc: ptr<function, Sums>, lane: Lane) {
    for (var c = 0u; c < COLS; c++) {
        partial[c * LANES + lane.index] = (*acc)[c];
    }
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane.index < half {
            for (var c = 0u; c < COLS; c++) {
                partial[c * LANES + lane.index] += partial[c * LANES + lane.index + half];
            }
        }
    }
    workgroupBarrier();
}

// The dot product of weight row `row` (of four) with activation row `column` (of COLS).
fn total(row: u32, column: u32, lane: Lane) -> f32 {
    var sum = partial[column * LANES][row];
    @if(subgroups)
    for (var i = 1u; i < lane.subgroups; i++) {
        sum += partial[column * LANES + i][row];
    }
    return sum;
}
