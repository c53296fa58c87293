// B t where t comes as partial sums. They are added up once per workgroup, in the same order whatever COLS is: stripe s
// takes the partial sums s, s + 8, ... ascending, then the stripes ascending.

import package::shared::dots::{COLS, WIDE};
import package::shared::lane::Lane;
import package::shared::lora::{b_element, b_entry, b_row, site, t, t_stride};
import package::shared::step::{lora_on, row_index, step_row};

const STRIPES = 8u;
const RANKS = 8u; // ranks at a time
var<workgroup> stripes: array<f32, COLS * STRIPES * RANKS>;

// Stripe s of rank r of part i, for a row that has LoRA.
fn stripe(line: u32, i: u32, r: u32, s: u32) -> f32 {
    let t_width = site.parts * site.rank;
    var sum = 0.0;
    for (var p = s; p < site.partials; p += STRIPES) {
        sum += t[line * t_stride() + p * t_width + i * site.rank + r];
    }
    return sum;
}

// y + (B t)[output] for the lane's `line`, one of COLS from `first` on, of n. All lanes call; `line` may lie past the end.
fn add_partials(y: f32, output: u32, line: u32, first: u32, n: u32, extent: u32, lane: Lane) -> f32 {
    var sum = y;
    let own = step_row(row_index(min(line, n - 1u), extent));
    let on = line < n && lora_on(own, site.layer);
    for (var i = 0u; i < site.parts; i++) {
        let part = site.part[i];
        let o = output - part.start;
        let mine = on && output >= part.start && o < part.rows;
        for (var begin = 0u; begin < site.rank; begin += RANKS) {
            for (var at = lane.index; at < COLS * STRIPES * RANKS; at += WIDE) {
                let other = first + at / (STRIPES * RANKS);
                let row = step_row(row_index(min(other, n - 1u), extent));
                let r = begin + at % RANKS;
                if other < n && lora_on(row, site.layer) && r < b_entry(i, row.slot).rank {
                    stripes[at] = stripe(other, i, r, at / RANKS % STRIPES);
                }
            }
            workgroupBarrier();
            if mine {
                let entry = b_entry(i, own.slot);
                let b = b_row(part, own.slot, o);
                for (var r = begin; r < min(begin + RANKS, entry.rank); r++) {
                    let at = (line - first) * STRIPES * RANKS + r - begin;
                    var whole = stripes[at];
                    for (var s = 1u; s < STRIPES; s++) {
                        whole += stripes[at + s * RANKS];
                    }
                    sum = fma(b_element(b, r), whole * entry.scale, sum);
                }
            }
            workgroupBarrier();
        }
    }
    return sum;
}
