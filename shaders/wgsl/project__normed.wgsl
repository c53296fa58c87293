// y = W norm(x) + b for samples, and for rows of class generated; norm(x) = x / rms(x) * g: the squares are summed in
// the same pass over x, 1 / rms(x) applied after it.
// t = A norm(x) of the site that is carried, for rows that have LoRA there.
// Grid: one workgroup per row and rank row of that site, then one per WORKGROUP_OUTPUTS outputs and COLS rows of x; lanes split the
// inputs. Bound by reading W.

import package::shared::a_pool::{a_quad, a_quad_entry};
import package::shared::carry::{next, t_out, t_out_stride};
import package::shared::dots::{COLS, DEPTH, MAX_COLS, OUTPUTS, Sums, WIDE, WORKGROUP_OUTPUTS, place, reduce, second, total};
import package::shared::inputs::{input, inputs};
import package::shared::lane::{Lane, group_index};
import package::shared::matrix::unit;
import package::shared::panels::{Panels, prepare};
import package::shared::reduce::sum;
import package::shared::squares::{add_squares, squares_of, times};
import package::shared::step::{generated, lora_on, row_index, step_row};
import package::shared::unit::{Inputs, fold_unit, units, vec4_of};

struct Params {
    panels: Panels, // of a quantized W
    k4: u32,        // vec4s of a row of W and of x
    used: u32,      // elements used of the last of them
    rows: u32,      // outputs of this part of W
    first: u32,     // the first of them
    stride: u32,    // elements between rows of y
    extent: u32,
    biased: u32,
    width: u32,     // elements of a row of x
    carried: u32,   // rank rows that this dispatch has
    eps: f32,
}

@group(1) @binding(0) var<uniform> params: Params;
@group(1) @binding(3) var<storage, read> vectors: array<vec4f>; // g [k4], then b [outputs of W padded to 4]
@group(1) @binding(5) var<storage, read_write> y: array<f32>;   // [n, stride]

fn inverse_rms(squares: f32) -> f32 {
    return 1.0 / sqrt(squares / f32(params.width) + params.eps);
}

// g of unit u.
fn gains(u: u32) -> Inputs {
    let i = vec4_of(u);
    let last = params.k4 - 1u;
    @if(nibbles)
    return Inputs(vectors[min(i, last)], vectors[min(i + 4u, last)]);
    @if(!nibbles)
    return Inputs(vectors[min(i, last)]);
}

fn rank_row(line: u32, output: u32, lane: Lane) {
    let row = step_row(row_index(line, params.extent));
    if !lora_on(row, next.layer) {
        return;
    }
    let index = output / next.rank * next.slots + row.slot;
    let entry = a_quad_entry(index);
    let r = output % next.rank;
    if r >= entry.rank {
        return;
    }
    let at = (index * next.rank + r) * params.k4;
    var acc = 0.0;
    var squares = 0.0;
    for (var i = lane.index; i < params.k4; i += WIDE) {
        let v = input(line, i, params.k4, params.used);
        let a = a_quad(next.head, at + i);
        let g = v * vectors[i];
        acc = fma(a.w, g.w, fma(a.z, g.z, fma(a.y, g.y, fma(a.x, g.x, acc))));
        squares = add_squares(squares, v);
    }
    let product = sum(acc, lane, WIDE);
    let scale = inverse_rms(sum(squares, lane, WIDE));
    if lane.index == 0u {
        t_out[line * t_out_stride() + output] = product * scale * entry.scale;
    }
}

// y of an output of this part of W, if it is one.
fn put(product: f32, scale: f32, local: u32, line: u32) {
    if local >= params.rows {
        return;
    }
    let output = params.first + local;
    var bias = 0.0;
    if params.biased != 0u {
        bias = vectors[params.k4 + output / 4u][output % 4u];
    }
    y[line * params.stride + output] = fma(product, scale, bias);
}

@compute @workgroup_size(WIDE)
fn main(lane: Lane) {
    let n = generated(params.extent);
    let index = group_index(lane);
    if index < n * params.carried {
        rank_row(index / params.carried, index % params.carried, lane);
        return;
    }
    let column_blocks = (n + COLS - 1u) / COLS;
    let column = (index - n * params.carried) % column_blocks * COLS;
    let begin = (index - n * params.carried) / column_blocks * WORKGROUP_OUTPUTS;
    if begin >= params.rows {
        return;
    }
    @if(nibbles)
    prepare(params.panels, lane.index);
    var acc: Sums;
    var squares: array<f32, MAX_COLS>;
    let quad = begin / 4u + place(lane) % 4u;
    @if(paired)
    var others: Sums;
    @if(paired)
    let other = second(quad, begin, params.rows);
    for (var u = place(lane) / 4u; u < units(params.k4); u += DEPTH) {
        let w = unit(params.panels, params.rows, params.k4, quad, u);
        @if(paired)
        let w_other = unit(params.panels, params.rows, params.k4, other, u);
        let g = gains(u);
        for (var c = 0u; c < COLS; c++) {
            let v = inputs(min(column + c, n - 1u), u, params.k4, params.used);
            let x = times(v, g);
            acc[c] = fold_unit(acc[c], w, x);
            @if(paired)
            others[c] = fold_unit(others[c], w_other, x);
            squares[c] = squares_of(squares[c], v);
        }
    }
    let c = min(lane.index / OUTPUTS, COLS - 1u);
    reduce(&acc, lane);
    let product = total(lane.index % OUTPUTS, c, lane);
    workgroupBarrier();
    @if(paired)
    reduce(&others, lane);
    @if(paired)
    let product_other = total(lane.index % OUTPUTS, c, lane);
    @if(paired)
    workgroupBarrier();
    for (var i = 0u; i < COLS; i++) {
        acc[i] = vec4f(squares[i]);
    }
    reduce(&acc, lane);
    let scale = inverse_rms(total(0u, c, lane));
    if lane.index < COLS * OUTPUTS && column + c < n {
        put(product, scale, begin + lane.index % OUTPUTS, column + c);
        @if(paired)
        put(product_other, scale, begin + OUTPUTS + lane.index % OUTPUTS, column + c);
    }
}
