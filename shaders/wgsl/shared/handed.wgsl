// The chunks of a row's positions, each by a workgroup, folded together by the one that is done last: which one that is
// changes nothing, since it takes them in their order.

import package::shared::chunks::{SHARE, Softmax, fold, folded};
import package::shared::lane::{Lane, LANES};

@id(0) override HEAD_DIM: u32; // padded to 4
@id(1) override HEADS: u32;    // q heads of a workgroup: at most 8, and ELEMENTS elements
const ELEMENTS = 1024u;

// [rows, blocks, chunks, HEADS, 2 + HEAD_DIM]: the maximum of a chunk's scores, the sum of their weights, acc
@coherent @group(1) @binding(5) var<storage, read_write> parts: array<f32>;
@group(1) @binding(6) var<storage, read_write> done: array<atomic<u32>>; // chunks, per row and block; 0 between launches

var<workgroup> acc: array<f32, ELEMENTS>; // [HEADS, HEAD_DIM]: sums over weights
var<workgroup> last: bool;

// Where head h of a chunk begins in `parts`, the chunks of all rows and blocks being counted.
fn head_part(chunk: u32, h: u32) -> u32 {
    return (chunk * HEADS + h) * (HEAD_DIM + 2u);
}

// Where a chunk has element i of acc.
fn element(chunk: u32, i: u32) -> u32 {
    return head_part(chunk, i / HEAD_DIM) + 2u + i % HEAD_DIM;
}

// Writes a chunk's softmax and sums to `parts`; whether it is the last of the block's `expected` chunks that did.
fn hand_in(softmax: Softmax, chunk: u32, block: u32, expected: u32, lane: Lane) -> bool {
    if lane.index % SHARE == 0u && lane.index / SHARE < HEADS {
        let head = head_part(chunk, lane.index / SHARE);
        parts[head] = softmax.top;
        parts[head + 1u] = softmax.total;
    }
    for (var i = lane.index; i < HEADS * HEAD_DIM; i += LANES) {
        parts[element(chunk, i)] = acc[i];
        acc[i] = 0.0;
    }
    storageBarrier();
    if lane.index == 0u {
        last = atomicAdd(&done[block], 1u) + 1u == expected;
        if last {
            atomicStore(&done[block], 0u);
        }
    }
    workgroupBarrier();
    storageBarrier();
    return last;
}

// Folds a chunk of `parts` in.
fn take(before: Softmax, chunk: u32, lane: Lane) -> Softmax {
    let head = head_part(chunk, min(lane.index / SHARE, HEADS - 1u));
    let softmax = fold(before, Softmax(parts[head], parts[head + 1u]), lane);
    for (var i = lane.index; i < HEADS * HEAD_DIM; i += LANES) {
        acc[i] = folded(acc[i], parts[element(chunk, i)], i / HEAD_DIM);
    }
    workgroupBarrier();
    return softmax;
}
