// Dot products of 16 weight rows (a panel) with COLS activation rows, by WIDE lanes: four lanes beside each other have
// four weight rows each, so that they read neighbouring words of a panel; DEPTH fours split the inputs. Whatever COLS is,
// each result is summed in the same order: a lane's units ascending, their elements ascending by fma, then the lanes.

import package::shared::lane::Lane;

// Activation rows that a workgroup computes for.
@id(0) override COLS: u32 = 1u;
const MAX_COLS = 8u;
const OUTPUTS = 16u; // weight rows that are summed together
// Weight rows of a workgroup of a projection; two panels share what is loaded of the activations.
@if(!paired)
const WORKGROUP_OUTPUTS = OUTPUTS;
@if(paired)
const WORKGROUP_OUTPUTS = 2u * OUTPUTS;
@id(1) override WIDE: u32 = 256u; // its lanes, a power of two: no fewer than COLS * OUTPUTS
override DEPTH: u32 = WIDE / 4u;

// Per activation row, the sums of the four weight rows.
alias Sums = array<vec4f, MAX_COLS>;

var<workgroup> partial: array<vec4f, COLS * WIDE / 2u>; // [COLS, slots, 4]

// acc + w x; w[i] holds element i of the four weight rows.
fn fold(acc: vec4f, w: mat4x4f, x: vec4f) -> vec4f {
    return fma(w[3], vec4f(x.w), fma(w[2], vec4f(x.z), fma(w[1], vec4f(x.y), fma(w[0], vec4f(x.x), acc))));
}

// The first `used` elements of v, zeros for the others: rows are padded to whole vec4s, and their padding is undefined.
fn masked(v: vec4f, used: u32) -> vec4f {
    return select(vec4f(), v, vec4u(0u, 1u, 2u, 3u) < vec4u(used));
}

// What of v, vec4 i of a row of k4, is in the row; the last one has `used` elements.
fn inside(v: vec4f, i: u32, k4: u32, used: u32) -> vec4f {
    return masked(v, select(select(0u, used, i + 1u == k4), 4u, i + 1u < k4));
}

// The lane's place: place % 4 is its four of the weight rows, place / 4 its share of the inputs.
fn place(lane: Lane) -> u32 {
    @if(subgroups)
    return lane.subgroup * (WIDE / lane.subgroups) + lane.in_subgroup;
    @if(!subgroups)
    return lane.index;
}

// The quad of the second panel that is beside `quad` of the one that begins at `begin`; without a second one, any.
fn second(quad: u32, begin: u32, rows: u32) -> u32 {
    return select(quad, quad + OUTPUTS / 4u, begin + OUTPUTS < rows);
}

// Parts of a sum that `reduce` leaves in `partial`.
fn slots(lane: Lane) -> u32 {
    @if(subgroups)
    return lane.subgroups;
    @if(!subgroups)
    return DEPTH / 2u;
}

// Sums over the lanes; then `total` may be called. A barrier must lie between two calls.
@if(subgroups)
fn reduce(acc: ptr<function, Sums>, lane: Lane) {
    for (var c = 0u; c < COLS; c++) {
        var sum = (*acc)[c];
        for (var other = 4u; other < WIDE / lane.subgroups; other *= 2u) {
            sum += subgroupShuffleXor(sum, other);
        }
        if lane.in_subgroup < 4u {
            partial[(c * lane.subgroups + lane.subgroup) * 4u + lane.in_subgroup] = sum;
        }
    }
    workgroupBarrier();
}

@if(!subgroups)
fn reduce(acc: ptr<function, Sums>, lane: Lane) {
    let half = WIDE / 2u;
    for (var c = 0u; c < COLS && lane.index >= half; c++) {
        partial[c * half + lane.index - half] = (*acc)[c];
    }
    workgroupBarrier();
    for (var c = 0u; c < COLS && lane.index < half; c++) {
        partial[c * half + lane.index] += (*acc)[c];
    }
    workgroupBarrier();
}

// The dot product of weight row `row` (of OUTPUTS) with activation row `column` (of COLS).
fn total(row: u32, column: u32, lane: Lane) -> f32 {
    let at = column * slots(lane) * 4u + row / 4u;
    var sum = partial[at][row % 4u];
    for (var i = 1u; i < slots(lane); i++) {
        sum += partial[at + i * 4u][row % 4u];
    }
    return sum;
}
