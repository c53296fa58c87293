// The chunks of a row's positions, each by a workgroup, folded together by the one that is done last: which one that is
// changes nothing, since it takes them in their order.

import package::shared::chunks::{LEAST, SHARE, Softmax, fold, folded};
import package::shared::kv::HEAD_DIM;
import package::shared::lane::{Lane, LANES};
import package::shared::queries::{HEADS, acc};

// [chunks of all rows, blocks, HEADS, 2 + HEAD_DIM]: the maximum of a chunk's scores, the sum of their weights, acc
@coherent @group(1) @binding(5) var<storage, read_write> parts: array<f32>;
@group(1) @binding(6) var<storage, read_write> done: array<atomic<u32>>; // chunks, per row and block; 0 between launches

// Where head h of a part begins.
fn head_part(part: u32, h: u32) -> u32 {
    return (part * HEADS + h) * (HEAD_DIM + 2u);
}

// Where a part has element i of its row's acc.
fn element(part: u32, i: u32) -> u32 {
    return head_part(part, i / HEAD_DIM) + 2u + i % HEAD_DIM;
}

// Writes the softmax and the sums of row r of those together.
fn put(softmax: Softmax, r: u32, part: u32, lane: Lane) {
    let h = lane.index / SHARE - r * HEADS;
    if lane.index % SHARE == 0u && h < HEADS {
        let head = head_part(part, h);
        parts[head] = softmax.top;
        parts[head + 1u] = softmax.total;
    }
    for (var i = lane.index; i < HEADS * HEAD_DIM; i += LANES) {
        parts[element(part, i)] = acc[r * HEADS * HEAD_DIM + i];
    }
}

// Counts a part that was put for a row and block; whether it is the last of `expected`.
fn complete(counter: u32, expected: u32) -> bool {
    let last = atomicAdd(&done[counter], 1u) + 1u == expected;
    if last {
        atomicStore(&done[counter], 0u);
    }
    return last;
}

// Folds `count` parts, each `step` behind the one before, into the place of the first row of those together.
fn take(first: u32, step: u32, count: u32, lane: Lane) -> Softmax {
    for (var i = lane.index; i < HEADS * HEAD_DIM; i += LANES) {
        acc[i] = 0.0;
    }
    var softmax = Softmax(LEAST, 0.0);
    for (var c = 0u; c < count; c++) {
        let part = first + c * step;
        let head = head_part(part, min(lane.index / SHARE, HEADS - 1u));
        softmax = fold(softmax, Softmax(parts[head], parts[head + 1u]), lane);
        for (var i = lane.index; i < HEADS * HEAD_DIM; i += LANES) {
            acc[i] = folded(acc[i], parts[element(part, i)], i / HEAD_DIM);
        }
        workgroupBarrier();
    }
    return softmax;
}
