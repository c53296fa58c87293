// y = softmax(scale * q K^T) V over the positions that a row may see, in chunks at absolute multiples of 128 that are
// folded in their order. t = A y of the site that is carried, one partial sum per head.
// Grid: one workgroup per block (HEADS q heads that share a k head) and item (items.wgsl): a chunk, read for all rows
// that see the same of it, TOGETHER of which share each load; then one per block and row without items, for all of its
// chunks. The last one that is done folds a row's chunks. Lanes split positions for q K^T, head elements for the sum.
// Bound by reading K, V.

import package::shared::cache::{Cache, elsewhere};
import package::shared::carry::{Carried, carry, next, values};
import package::shared::chunks::{CHUNK, LEAST, SHARE, Softmax, factors};
import package::shared::handed::{complete, put, take};
import package::shared::items::{Item, MEMBERS, alike, divided, item, items, member, sight, spanned, within};
import package::shared::kv::HEAD_DIM;
import package::shared::lane::{Lane, LANES, group_index};
import package::shared::queries::{Block, HEADS, TOGETHER, View, acc, add_chunk, ask, block_of};
import package::shared::step::{ROWS, count, step_row};

struct Params {
    cache: Cache,
    heads: u32,  // of q
    stride: u32, // elements between rows of q and y
    window: u32, // positions that a row sees, the own one included
    scale: f32,
    blocks: u32, // of q heads that share a k head
}

@group(1) @binding(0) var<uniform> params: Params;
@group(1) @binding(4) var<storage, read_write> y: array<f32>; // [n, stride]

var<workgroup> last: array<bool, MEMBERS>; // of the item's rows, whose chunks are all done

// y, and the carried sums, of the first row of those together.
fn finish(total: f32, line: u32, own: Block, lane: Lane) {
    if lane.index % SHARE == 0u {
        factors[lane.index / SHARE].x = total;
    }
    workgroupBarrier();
    let head_dim = params.cache.head_dim;
    for (var h = 0u; h < own.heads; h++) {
        let at = own.q + h * head_dim;
        for (var i = lane.index; i < head_dim; i += LANES) {
            let value = acc[h * HEAD_DIM + i] / factors[h].x;
            y[line * params.stride + at + i] = value;
            if next.parts != 0u {
                values[i] = value;
            }
        }
        workgroupBarrier();
        carry(Carried(line, 1u, ROWS, own.first + h, at, head_dim, params.heads * head_dim, 0u), lane, LANES);
    }
}

// Adds all chunks of a row.
fn add_chunks(line: u32, own: Block, lane: Lane) -> Softmax {
    let all = sight(line, params.window);
    ask(0u, line * params.stride + own.q, own.heads, params.cache.head_dim, lane);
    workgroupBarrier();
    var softmax = Softmax(LEAST, 0.0);
    for (var chunk = all.x / CHUNK; chunk * CHUNK < all.y; chunk++) {
        let seen = within(all, chunk);
        let view = View(own.kv_head, step_row(line).sequence, seen.x, seen.y, HEADS);
        softmax = add_chunk(softmax, view, params.cache, params.scale, lane);
    }
    return softmax;
}

// Puts an item's chunk for its rows: as many together as there is room for, and as see the same of it.
fn put_chunk(it: Item, own: Block, lane: Lane) {
    var n = 0u;
    for (var i = 0u; i < it.count; i += n) {
        let line = member(it.first + i).line;
        let seen = within(sight(line, params.window), it.chunk);
        n = alike(it, i, TOGETHER, params.window);
        if seen.x == seen.y {
            continue;
        }
        for (var r = 0u; r < n; r++) {
            let at = member(it.first + i + r).line * params.stride + own.q;
            ask(r, at, own.heads, params.cache.head_dim, lane);
        }
        workgroupBarrier();
        let view = View(own.kv_head, step_row(line).sequence, seen.x, seen.y, n * HEADS);
        let softmax = add_chunk(Softmax(LEAST, 0.0), view, params.cache, params.scale, lane);
        for (var r = 0u; r < n; r++) {
            let row = member(it.first + i + r);
            let chunk = row.chunks + it.chunk - sight(row.line, params.window).x / CHUNK;
            put(softmax, r, chunk * own.blocks + own.index, lane);
        }
    }
}

@compute @workgroup_size(64)
fn main(lane: Lane) {
    let own = block_of(group_index(lane), params.cache, params.heads, params.blocks);
    let index = group_index(lane) / own.blocks;
    if index >= items() + count(ROWS) - divided() || elsewhere(params.cache, own.kv_head) {
        return;
    }
    var it = Item(0u, 0u, 1u);
    var line = index - items() + divided();
    var alone = true;
    if index < items() {
        it = item(index);
        line = member(it.first).line;
        let all = sight(line, params.window);
        alone = it.count == 1u && spanned(all) == 1u; // nothing is to be handed over
        if alone && all.x / CHUNK != it.chunk {
            return;
        }
    }
    var softmax = Softmax(LEAST, 0.0);
    if alone {
        softmax = add_chunks(line, own, lane);
    } else {
        put_chunk(it, own, lane);
        storageBarrier();
        if lane.index < it.count {
            let row = member(it.first + lane.index).line;
            let sees = sight(row, params.window);
            let seen = within(sees, it.chunk);
            last[lane.index] = seen.x < seen.y && complete(row * own.blocks + own.index, spanned(sees));
        }
        workgroupBarrier();
        storageBarrier();
    }
    for (var i = 0u; i < it.count; i++) {
        if !alone {
            if !last[i] {
                continue;
            }
            let row = member(it.first + i);
            line = row.line;
            let parts = spanned(sight(line, params.window));
            softmax = take(row.chunks * own.blocks + own.index, own.blocks, parts, lane);
        }
        finish(softmax.total, line, own, lane);
    }
}
