//! LoRA factors as kernels see them.

use std::ops::Range;

use wattle_shaders::Row;

use crate::{Read, Write};

/// The factors of one slot at one projection: y += B (A x), the scale being in B.
///
/// `T` is a view (plain twins) or a slice (fast versions).
#[derive(Clone, Copy, Debug)]
pub struct Pair<T> {
    /// Rows of A, columns of B.
    pub rank: usize,
    /// A: \[rank, cols\].
    pub a: T,
    /// B: \[rows, rank\].
    pub b: T,
}

/// A projection that carries LoRA.
#[derive(Clone, Debug)]
pub struct Target<T> {
    /// Where its outputs begin in a row of the op's output.
    pub start: usize,
    /// Its outputs.
    pub rows: usize,
    /// The factors of each slot; none where the slot is empty or has none here.
    pub slots: Vec<Option<Pair<T>>>,
}

impl<T> Target<T> {
    /// Those of some outputs of the projection that are this target's; `None` if none is.
    pub(crate) fn overlap(&self, outputs: &Range<usize>) -> Option<Range<usize>> {
        let from = outputs.start.max(self.start);
        let to = outputs.end.min(self.start + self.rows);
        (from < to).then_some(from..to)
    }
}

/// Projections of one input that carry LoRA together; t = A x is \[row, partials, targets × rank\], sums over `part`
/// columns each.
#[derive(Clone, Debug)]
pub struct Lora<T> {
    /// The layer whose mask bit counts.
    pub layer: u32,
    /// Width of the input x.
    pub cols: usize,
    /// Elements of a partial sum of t per target: the highest rank that there is room for.
    pub rank: usize,
    /// Columns of a partial sum; `cols` where t is whole.
    pub part: usize,
    /// The projections, in the order of their outputs.
    pub targets: Vec<Target<T>>,
}

impl<T> Lora<T> {
    /// Elements of t, or of one of its partial sums.
    pub fn t_width(&self) -> usize {
        self.targets.len() * self.rank
    }

    /// Partial sums of t.
    pub fn partials(&self) -> usize {
        self.cols.div_ceil(self.part)
    }

    /// Where t has a partial sum of rank 0 of target `index` for row `line`.
    pub fn t_at(&self, line: usize, partial: usize, index: usize) -> usize {
        (line * self.partials() + partial) * self.t_width() + index * self.rank
    }

    /// The factors of target `index` for a row; `None` when LoRA is off for it or its slot has none.
    pub fn active(&self, index: usize, row: &Row) -> Option<&Pair<T>> {
        if !row.lora_in(self.layer) {
            return None;
        }
        self.targets[index].slots.get(row.slot as usize)?.as_ref().filter(|pair| pair.rank > 0)
    }

    /// The index of the target that output `output` belongs to.
    pub fn target_of(&self, output: usize) -> Option<usize> {
        self.targets.iter().position(|t| (t.start..t.start + t.rows).contains(&output))
    }
}

impl Lora<&dyn Read> {
    /// t = A v for row `line` of the op, v being \[cols\]; left alone where LoRA is off.
    pub fn down(&self, line: usize, row: &Row, v: &dyn Fn(usize) -> f64, t: &mut dyn Write) {
        for index in 0..self.targets.len() {
            let Some(pair) = self.active(index, row) else { continue };
            for (partial, start) in (0..self.cols).step_by(self.part).enumerate() {
                let columns = start..self.cols.min(start + self.part);
                for r in 0..pair.rank {
                    let product = |i| f64::from(pair.a.get(r * self.cols + i)) * v(i);
                    let sum: f64 = columns.clone().map(product).sum();
                    t.set(self.t_at(line, partial, index) + r, sum as f32);
                }
            }
        }
    }

    /// y + (B t)\[output\] for row `line` of the op, the rank's terms in ascending order; y where LoRA is off.
    pub fn add(&self, y: f64, output: usize, line: usize, row: &Row, t: &dyn Read) -> f64 {
        let Some(index) = self.target_of(output) else { return y };
        let Some(pair) = self.active(index, row) else { return y };
        let b_row = (output - self.targets[index].start) * pair.rank;
        let partial = |p, r| f64::from(t.get(self.t_at(line, p, index) + r));
        let t = |r| (0..self.partials()).map(|p| partial(p, r)).sum::<f64>();
        (0..pair.rank).fold(y, |y, r| y + f64::from(pair.b.get(b_row + r)) * t(r))
    }
}

/// t = A v of another projection, which a kernel writes beside the v that it makes.
pub struct Carry<'a> {
    /// Of the op.
    pub rows: &'a [Row],
    /// The projection's factors.
    pub lora: &'a Lora<&'a dyn Read>,
    /// \[rows, partials, t width\].
    pub t: &'a mut dyn Write,
}

impl Carry<'_> {
    /// Writes row `line` of t.
    pub fn row(&mut self, line: usize, v: &[f64]) {
        self.lora.down(line, &self.rows[line], &|i| v[i], self.t);
    }
}
