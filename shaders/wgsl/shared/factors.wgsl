// LoRA factors as pools keep them, in words: f32, or binary16 in pairs, times a power of two per slot and projection. A
// pool begins with its table: for every projection and slot the rank (0: no factors) and that power of two.

// An entry of the table.
struct Entry {
    rank: u32,
    scale: f32,
}

// The two words of an entry.
fn entry_of(words: vec2u) -> Entry {
    return Entry(words.x, bitcast<f32>(words.y));
}

@if(!halves)
const PER_WORD = 1u;
@if(halves)
const PER_WORD = 2u;

// Element `at`, without its scale, in the word that it lies in.
fn element_of(word: u32, at: u32) -> f32 {
    @if(!halves)
    return bitcast<f32>(word);
    @if(halves)
    return unpack2x16float(word)[at % 2u];
}

// Four elements as they are stored, and in how many words.
@if(!halves)
alias Quad = vec4u;
@if(halves)
alias Quad = vec2u;
const QUAD_WORDS = 4u / PER_WORD;

// The four, without their scale.
fn unquad(q: Quad) -> vec4f {
    @if(!halves)
    return bitcast<vec4f>(q);
    @if(halves)
    return vec4f(unpack2x16float(q.x), unpack2x16float(q.y));
}
