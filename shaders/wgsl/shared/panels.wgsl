// Quantized weights: codes, scales and offsets of panels of 16 rows, as kernels-cpu's `panels` defines them. A buffer
// holds first all codes, then all scales, then all offsets of its rows; its vec4us are four rows' words of codes.

struct Panels {
    blocks: u32,      // blocks of 32 columns of a row
    group_k4: u32,    // vec4s of columns that share a scale
    groups: u32,      // scales of a row
    scales: u32,      // where they begin, in vec4us
    offsets: u32,     // where the offsets begin
    scale_type: u32,  // 0 f32, 1 f16, 2 bf16
    offset_type: u32, // 0 the middle, 1 f16 minima, 2 u8 zeros, 3 none: NormalFloat
    _pad: u32,
}

// The values of 4-bit NormalFloat (Dettmers et al. 2023, appendix E).
const NF4 = array<f32, 16>(
    -1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.091050036, 0.0,
    0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0);

// The same where lanes look them up: compilers copy a constant array for every use of it.
var<workgroup> normal_floats: array<f32, 16>;

// To be called by all of at least 16 lanes before any decodes.
fn prepare(p: Panels, lane: u32) {
    if p.offset_type == 3u {
        if lane < 16u {
            normal_floats[lane] = NF4[lane];
        }
        workgroupBarrier();
    }
}

// The values of four codes, the lowest bits of words.
fn normal_float(words: vec4u) -> vec4f {
    let at = words & vec4u(15u);
    return vec4f(normal_floats[at.x], normal_floats[at.y], normal_floats[at.z], normal_floats[at.w]);
}

// Where the codes of the vec4 of columns `i` of the four rows `quad` (counted from the buffer's first) lie.
fn codes_at(p: Panels, quad: u32, i: u32) -> u32 {
    @if(nibbles)
    return ((quad / 4u * p.blocks + i / 8u) * 4u + i % 4u) * 4u + quad % 4u;
    @if(bytes)
    return ((quad / 4u * p.blocks + i / 8u) * 8u + i % 8u) * 4u + quad % 4u;
}

// The panel's row of scales, counted in groups.
fn group_at(p: Panels, quad: u32, i: u32) -> u32 {
    return quad / 4u * p.groups + i / p.group_k4;
}

// Where the vec4u with the scales of the same lies.
fn scales_at(p: Panels, quad: u32, i: u32) -> u32 {
    let group = group_at(p, quad, i);
    return p.scales + select(group * 2u + quad % 4u / 2u, group * 4u + quad % 4u, p.scale_type == 0u);
}

// Where the vec4u with the offsets of the same lies; any place if there are none.
fn offsets_at(p: Panels, quad: u32, i: u32) -> u32 {
    let group = group_at(p, quad, i);
    return select(0u, p.offsets + select(group, group * 2u + quad % 4u / 2u, p.offset_type == 1u),
        p.offset_type == 1u || p.offset_type == 2u);
}

// Of 8 rows' 16-bit words, the four rows'.
fn half(words: vec4u, quad: u32) -> vec2u {
    return select(words.xy, words.zw, quad % 2u == 1u);
}

fn f16s(words: vec2u) -> vec4f {
    return vec4f(unpack2x16float(words.x), unpack2x16float(words.y));
}

fn scale_of(p: Panels, words: vec4u, quad: u32) -> vec4f {
    let h = half(words, quad);
    if p.scale_type == 0u {
        return bitcast<vec4f>(words);
    }
    if p.scale_type == 1u {
        return f16s(h);
    }
    return bitcast<vec4f>(vec4u(h.x << 16u, h.x & 0xffff0000u, h.y << 16u, h.y & 0xffff0000u));
}

// The codes of column 4 i + b of four rows.
fn codes(words: vec4u, i: u32, b: u32) -> vec4f {
    @if(nibbles)
    return vec4f((words >> vec4u(8u * b + i % 8u / 4u * 4u)) & vec4u(15u));
    @if(bytes)
    return vec4f(bitcast<vec4i>(words << vec4u(24u - 8u * b)) >> vec4u(24u));
}

// The zeros of four rows.
fn zeros_of(offsets: vec4u, quad: u32) -> vec4f {
    return vec4f((vec4u(offsets[quad % 4u]) >> vec4u(0u, 8u, 16u, 24u)) & vec4u(255u));
}

fn element(p: Panels, c: vec4f, scale: vec4f, offsets: vec4u, quad: u32) -> vec4f {
    switch p.offset_type {
        case 0u: {
            @if(nibbles)
            return scale * (c - 8.0);
            @if(bytes)
            return scale * c;
        }
        case 1u: {
            return fma(scale, c, f16s(half(offsets, quad)));
        }
        case 2u: {
            return scale * (c - zeros_of(offsets, quad));
        }
        default: {
            @if(nibbles)
            return scale * normal_float(vec4u(c));
            @if(bytes)
            return scale * c;
        }
    }
}

// Elements 4 i .. 4 i + 3 of four rows, as columns.
fn decode(p: Panels, words: vec4u, scales: vec4u, offsets: vec4u, quad: u32, i: u32) -> mat4x4f {
    let scale = scale_of(p, scales, quad);
    return mat4x4f(
        element(p, codes(words, i, 0u), scale, offsets, quad),
        element(p, codes(words, i, 1u), scale, offsets, quad),
        element(p, codes(words, i, 2u), scale, offsets, quad),
        element(p, codes(words, i, 3u), scale, offsets, quad));
}
