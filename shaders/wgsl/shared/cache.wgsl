// The KV cache of a layer: cells (kv head, sequence), each [positions, head_dim padded to 4]. A buffer holds some
// consecutive cells; where they do not fit one, each op runs once per buffer and leaves the other cells alone.

struct Cache {
    kv_heads: u32,
    head_dim: u32,
    sequences: u32,
    positions: u32,
    first: u32, // the first cell of the buffer
    cells: u32, // and how many
    _pad: u32,  // uniform structs within structs take whole vec4s
    _pad2: u32,
}

// Elements from one position to the next.
fn cell_stride(cache: Cache) -> u32 {
    return (cache.head_dim + 3u) / 4u * 4u;
}

// The cell's index in this buffer; `cache.cells` or more where another buffer has it.
fn cell(cache: Cache, kv_head: u32, sequence: u32) -> u32 {
    return kv_head * cache.sequences + sequence - cache.first;
}
