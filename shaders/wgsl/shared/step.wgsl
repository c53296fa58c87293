// The step as the host wrote it, bound by every kernel: how many rows and samples, then the rows, then the samples.
// Both are 48 bytes, three vec4u (wattle_shaders::Row, wattle_shaders::Sample).

// [0] = rows, samples, rows of class generated, which come first, items of attention; [1] = rows that these are of;
// [2 ..] rows; then samples; then what items are (items.wgsl); behind the room for all that, the page tables (cache.wgsl)
@group(0) @binding(0) var<storage, read> step: array<vec4u>;

struct Row {
    token: u32,
    position: u32,
    sequence: u32,
    slot: u32,
    lora: vec4u,
    flags: u32,
    closed: u32, // mask bits that gates have cleared
}

const FROM_STATE = 1u;
const LONG_ROPE = 2u;
const NO_INDEX = 0xffffffffu;

// Extents: which rows a tensor has.
const ROWS = 0u;
const SAMPLES = 1u;

// Where the rows begin, in vec4us.
const ROWS_AT = 2u;

// How many rows a tensor of this extent has in this step.
fn count(extent: u32) -> u32 {
    return step[0][extent];
}

// How many of them are of class generated, as far as projections tell: all samples are.
fn generated(extent: u32) -> u32 {
    return select(step[0].z, step[0].y, extent == SAMPLES);
}

// Row `index` of the step.
fn step_row(index: u32) -> Row {
    let at = ROWS_AT + index * 3u;
    return Row(step[at].x, step[at].y, step[at].z, step[at].w, step[at + 1u], step[at + 2u].x,
        step[at + 2u].y);
}

// Words 4 * part .. 4 * part + 4 of sample `index`.
fn sample_words(index: u32, part: u32) -> vec4u {
    return step[ROWS_AT + (step[0].x + index) * 3u + part];
}

// The index of the step's row that line `line` of a tensor of this extent belongs to. No branch, as its condition would
// hang on a uniform alone: software drivers compile a kernel anew, at every launch, for what such conditions decide.
fn row_index(line: u32, extent: u32) -> u32 {
    let samples = extent == SAMPLES;
    return select(line, sample_words(select(0u, line, samples), 0u).x, samples);
}

// Whether LoRA is on for the row in this layer (127: outside the layers).
fn lora_on(row: Row, layer: u32) -> bool {
    return row.slot != NO_INDEX && ((row.lora[layer >> 5u] >> (layer & 31u)) & 1u) == 1u;
}
