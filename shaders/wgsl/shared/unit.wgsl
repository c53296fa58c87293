// What a lane of a matrix-vector kernel multiplies in a turn, of four weight rows: the columns of one word of codes, eight
// of 4 bits (those of two vec4s, i and i + 4) or four of 8 bits; of dense weights four columns. Codes are multiplied as
// exact numbers, and the unit's sum by their scale: a unit lies in one block.

import package::shared::dots::fold;
import package::shared::panels::{Panels, f16s, half, normal_float, scale_of, zeros_of};

// What offsets there are: `offset_type` of Panels.
@id(2) override OFFSETS: u32 = 0u;

// Columns of four weight rows.
struct Unit {
    first: mat4x4f,
    @if(nibbles) second: mat4x4f,
    @if(nibbles || bytes) scale: vec4f,
    @if(nibbles || bytes) minimum: vec4f, // of elements, where there are minima
}

// The inputs of the same columns.
struct Inputs {
    first: vec4f,
    @if(nibbles) second: vec4f,
}

// Units of a row of k4 vec4s.
fn units(k4: u32) -> u32 {
    @if(nibbles)
    return (k4 + 7u) / 8u * 4u;
    @if(!nibbles)
    return k4;
}

// The vec4 of columns that a unit begins with.
fn vec4_of(unit: u32) -> u32 {
    @if(nibbles)
    return unit / 4u * 8u + unit % 4u;
    @if(!nibbles)
    return unit;
}

// acc + W x over the unit.
fn fold_unit(acc: vec4f, unit: Unit, x: Inputs) -> vec4f {
    @if(f32 || f16 || bf16)
    return fold(acc, unit.first, x.first);
    @if(nibbles || bytes)
    return fold_codes(acc, unit, x);
}

@if(nibbles || bytes)
fn fold_codes(acc: vec4f, unit: Unit, x: Inputs) -> vec4f {
    var sum = fold(vec4f(), unit.first, x.first);
    var inputs = x.first;
    @if(nibbles) {
        sum = fold(sum, unit.second, x.second);
        inputs += x.second;
    }
    let products = fma(unit.scale, sum, acc);
    if OFFSETS != 1u {
        return products;
    }
    return fma(unit.minimum, vec4f(inputs.x + inputs.y + inputs.z + inputs.w), products);
}

// The unit of these words of codes, scales and offsets of four rows, quad `quad`.
@if(nibbles || bytes)
fn unit_of(p: Panels, words: vec4u, scales: vec4u, offsets: vec4u, quad: u32) -> Unit {
    var unit: Unit;
    unit.scale = scale_of(p, scales, quad);
    unit.minimum = f16s(half(offsets, quad));
    @if(nibbles)
    if OFFSETS == 3u {
        unit.first = normal(words);
        unit.second = normal(words >> vec4u(4u));
        return unit;
    }
    let zeros = select(vec4f(), zeros_of(offsets, quad), OFFSETS == 2u);
    @if(nibbles) {
        let middle = select(zeros, vec4f(8.0), OFFSETS == 0u);
        unit.first = columns(words, 0x0fu, 0x0f00u, 1.0, middle);
        unit.second = columns(words, 0xf0u, 0xf000u, 0.0625, middle);
    }
    // Signed, so that 128 more than the code is not.
    @if(bytes)
    unit.first = columns(words ^ vec4u(0x80808080u), 0xffu, 0xff00u, 1.0, zeros + 128.0);
    return unit;
}

// The four bytes' codes less their rows' zeros: bits `low` of a half of a word, of which `one` makes codes, and bits
// `high`, which stand for 256 times as much.
@if(nibbles || bytes)
fn columns(words: vec4u, low: u32, high: u32, one: f32, zeros: vec4f) -> mat4x4f {
    let upper = words >> vec4u(16u);
    let high_one = one * 0.00390625;
    return mat4x4f(
        numbers(words, low, one, zeros), numbers(words, high, high_one, zeros),
        numbers(upper, low, one, zeros), numbers(upper, high, high_one, zeros));
}

// Numbers without a conversion: the lowest 16 bits of 2^23 as f32 count ones. `one` is a power of two: every step is
// exact.
@if(nibbles || bytes)
fn numbers(words: vec4u, mask: u32, one: f32, zeros: vec4f) -> vec4f {
    let raised = bitcast<vec4f>((words & vec4u(mask)) | vec4u(0x4b000000u));
    return fma(raised, vec4f(one), -8388608.0 * one - zeros);
}

// The values of the lower halves of the bytes.
@if(nibbles)
fn normal(words: vec4u) -> mat4x4f {
    return mat4x4f(normal_float(words), normal_float(words >> vec4u(8u)), normal_float(words >> vec4u(16u)),
        normal_float(words >> vec4u(24u)));
}
