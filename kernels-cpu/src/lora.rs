//! LoRA factors as kernels see them.

use wattle_shaders::Row;

use crate::Read;

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

/// Projections of one input that carry LoRA together; t = A x is \[row, targets × rank\].
#[derive(Clone, Debug)]
pub struct Lora<T> {
    /// The layer whose mask bit counts.
    pub layer: u32,
    /// Width of the input x.
    pub cols: usize,
    /// Elements of a row of t per target: the highest rank that there is room for.
    pub rank: usize,
    /// The projections, in the order of their outputs.
    pub targets: Vec<Target<T>>,
}

impl<T> Lora<T> {
    /// Elements of a row of t.
    pub fn t_width(&self) -> usize {
        self.targets.len() * self.rank
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
    /// y + (B t)\[output\] for row `line` of the op, the rank's terms in ascending order; y where LoRA is off.
    pub fn add(&self, y: f64, output: usize, line: usize, row: &Row, t: &dyn Read) -> f64 {
        let Some(index) = self.target_of(output) else { return y };
        let Some(pair) = self.active(index, row) else { return y };
        let b_row = (output - self.targets[index].start) * pair.rank;
        let t_row = line * self.t_width() + index * self.rank;
        (0..pair.rank).fold(y, |y, r| y + f64::from(pair.b.get(b_row + r)) * f64::from(t.get(t_row + r)))
    }
}
