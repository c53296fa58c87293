//! Rotary position embedding (Su et al. 2021): pair (i, i + pairs) of every head is turned by the position's angle.

use wattle_shaders::{LONG_ROPE, Row};

use crate::{Read, Write};

/// The angles, see the engine's `RopeTable`.
///
/// `T` is a view (plain twins) or a slice (fast versions).
#[derive(Clone, Copy)]
pub struct Angles<T> {
    /// Cosines and sines: \[sets, positions, pairs, 2\].
    pub table: T,
    /// Positions of a set.
    pub positions: usize,
    /// Pairs of a head.
    pub pairs: usize,
}

impl<T> Angles<T> {
    /// Where the table has the cosine of a row's pair 0; rows with [`LONG_ROPE`] use the second set.
    pub fn at(&self, row: &Row) -> usize {
        let set = usize::from(row.flags & LONG_ROPE != 0);
        (set * self.positions + row.position as usize) * self.pairs * 2
    }
}

impl Angles<&dyn Read> {
    /// Rotates one head.
    pub fn rotate(&self, row: &Row, head: &mut [f64]) {
        for i in 0..self.pairs {
            let at = self.at(row) + 2 * i;
            let (cos, sin) = (f64::from(self.table.get(at)), f64::from(self.table.get(at + 1)));
            let (x, y) = (head[i], head[i + self.pairs]);
            (head[i], head[i + self.pairs]) = (x * cos - y * sin, y * cos + x * sin);
        }
    }
}

/// `x` and `y` \[rows, heads × head_dim\].
pub fn plain(
    rows: &[Row],
    heads: usize,
    head_dim: usize,
    angles: &Angles<&dyn Read>,
    x: &dyn Read,
    y: &mut dyn Write,
) {
    for (line, row) in rows.iter().enumerate() {
        for start in (0..heads).map(|head| (line * heads + head) * head_dim) {
            let mut head: Vec<f64> = (0..head_dim).map(|i| f64::from(x.get(start + i))).collect();
            angles.rotate(row, &mut head);
            head.iter().enumerate().for_each(|(i, &value)| y.set(start + i, value as f32));
        }
    }
}
