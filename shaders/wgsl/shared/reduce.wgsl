// Sums and maxima over a workgroup of `lanes` (a power of two), in one fixed order. All invocations call; all get the result.

import package::shared::lane::Lane;

const MAX_LANES = 256u;
var<workgroup> partial: array<f32, MAX_LANES>;

@if(subgroups)
fn sum(value: f32, lane: Lane, lanes: u32) -> f32 {
    let part = subgroupAdd(value);
    if lane.in_subgroup == 0u {
        partial[lane.subgroup] = part;
    }
    workgroupBarrier();
    var total = partial[0];
    for (var i = 1u; i < lane.subgroups; i++) {
        total += partial[i];
    }
    workgroupBarrier();
    return total;
}

@if(subgroups)
fn maximum(value: f32, lane: Lane, lanes: u32) -> f32 {
    let part = subgroupMax(value);
    if lane.in_subgroup == 0u {
        partial[lane.subgroup] = part;
    }
    workgroupBarrier();
    var total = partial[0];
    for (var i = 1u; i < lane.subgroups; i++) {
        total = max(total, partial[i]);
    }
    workgroupBarrier();
    return total;
}

@if(!subgroups)
fn sum(value: f32, lane: Lane, lanes: u32) -> f32 {
    partial[lane.index] = value;
    for (var half = lanes / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane.index < half {
            partial[lane.index] += partial[lane.index + half];
        }
    }
    workgroupBarrier();
    let total = partial[0];
    workgroupBarrier();
    return total;
}

@if(!subgroups)
fn maximum(value: f32, lane: Lane, lanes: u32) -> f32 {
    partial[lane.index] = value;
    for (var half = lanes / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane.index < half {
            partial[lane.index] = max(partial[lane.index], partial[lane.index + half]);
        }
    }
    workgroupBarrier();
    let total = partial[0];
    workgroupBarrier();
    return total;
}
