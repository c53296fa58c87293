//! LoRA: t = A x, and y + B t.

use wattle_shaders::Row;

use super::simd::{Simd, Work, run};
use super::threads::lines;
use super::tile::products;
use crate::{Lora, State};

/// y += B t for the outputs from `start` on of row `line`, the rank's terms in ascending order.
#[inline(always)]
pub(super) fn add_up<S: Simd>(
    simd: S,
    lora: &Lora<&[f32]>,
    row: &Row,
    line: usize,
    t: &[f32],
    start: usize,
    y: &mut [f32],
) {
    if !row.lora_in(lora.layer) {
        return;
    }
    let end = start + y.len();
    for (index, target) in lora.targets.iter().enumerate() {
        let Some(pair) = lora.active(index, row) else { continue };
        let t = &t[line * lora.t_width() + index * lora.rank..][..pair.rank];
        for output in start.max(target.start)..end.min(target.start + target.rows) {
            let b = &pair.b[(output - target.start) * pair.rank..][..pair.rank];
            let sum = &mut y[output - start];
            for (b, t) in b.iter().zip(t) {
                *sum = simd.mul_add(*b, *t, *sum);
            }
        }
    }
}

/// z = y + B t; `y` and `z` \[rows, width\], `t` \[rows, t width\].
pub fn lora_up(rows: &[Row], width: usize, lora: &Lora<&[f32]>, y: &[f32], t: &[f32], z: &mut [f32]) {
    z.copy_from_slice(y);
    lines(z, width, z.len() * lora.rank, |first, z| run(Up { rows, width, lora, t, first, z }));
}

struct Up<'a> {
    rows: &'a [Row],
    width: usize,
    lora: &'a Lora<&'a [f32]>,
    t: &'a [f32],
    first: usize,
    z: &'a mut [f32],
}

impl Work for Up<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for (line, z) in (self.first..).zip(self.z.chunks_mut(self.width)) {
            add_up(simd, self.lora, &self.rows[line], line, self.t, 0, z);
        }
    }
}

/// t = A x for active rows; `x` \[rows, cols\], `t` \[rows, t width\].
pub fn lora_down(rows: &[Row], lora: &Lora<&[f32]>, x: &[f32], t: &mut [f32]) {
    let cost = t.len() * lora.cols;
    lines(t, lora.t_width(), cost, |first, t| run(Down { rows, lora, x, first, t }));
}

struct Down<'a> {
    rows: &'a [Row],
    lora: &'a Lora<&'a [f32]>,
    x: &'a [f32],
    first: usize,
    t: &'a mut [f32],
}

impl Work for Down<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { lora, first, t, .. } = self;
        let width = lora.t_width();
        let rows = &self.rows[first..first + t.len() / width];
        for index in 0..lora.targets.len() {
            for (slot, pair) in lora.targets[index].slots.iter().enumerate() {
                let Some(pair) = pair else { continue };
                // The rows of a slot together, so that its A is read once.
                let own = |line: &usize| rows[*line].slot as usize == slot && rows[*line].lora_in(lora.layer);
                let own: Vec<usize> = (0..rows.len()).filter(own).collect();
                let x: Vec<&[f32]> =
                    own.iter().map(|line| &self.x[(first + line) * lora.cols..][..lora.cols]).collect();
                products(simd, pair.a, lora.cols, pair.rank, lora.cols, &x, &mut |line, r, sum| {
                    t[own[line] * width + index * lora.rank + r] = sum;
                });
            }
        }
    }
}

/// t = a column of A for active rows; `t` \[rows, t width\].
pub fn lora_embed(rows: &[Row], lora: &Lora<&[f32]>, states: &[State], t: &mut [f32]) {
    for (row, t) in rows.iter().zip(t.chunks_mut(lora.t_width().max(1))) {
        let token = states[row.sequence as usize].token(row) as usize;
        for index in 0..lora.targets.len() {
            let Some(pair) = lora.active(index, row) else { continue };
            for (r, t) in t[index * lora.rank..][..pair.rank].iter_mut().enumerate() {
                *t = pair.a[r * lora.cols + token];
            }
        }
    }
}
