//! y = softmax(scale · q Kᵀ) V (Vaswani et al. 2017, equation 1) over the positions that a row may see.

use std::ops::Range;

use wattle_shaders::Row;

use crate::cache::Cached;
use crate::{Carry, Read, Write};

/// Shapes and rules.
#[derive(Clone, Copy, Debug)]
pub struct Attend {
    /// Query heads; a multiple of the key heads, each of which serves as many neighbours.
    pub heads: usize,
    /// Multiplies q·k.
    pub scale: f32,
    /// Only the last so many positions, the own one included.
    pub window: Option<u32>,
}

impl Attend {
    /// The positions that a row sees.
    pub fn span(&self, row: &Row) -> Range<usize> {
        let end = row.position as usize + 1;
        self.window.map_or(0, |window| end.saturating_sub(window as usize))..end
    }
}

/// `q` and `y` \[rows, heads × head_dim\]; what is carried has y as its input.
pub fn plain(
    rows: &[Row],
    op: &Attend,
    q: &dyn Read,
    cache: Cached,
    y: &mut dyn Write,
    mut carry: Option<Carry>,
) {
    let Cached { layout, k, v } = cache;
    for (line, row) in rows.iter().enumerate() {
        let mut values = Vec::new();
        for head in 0..op.heads {
            let start = (line * op.heads + head) * layout.head_dim;
            let at = layout.head(row.sequence, head / (op.heads / layout.kv_heads));
            let score = |position| {
                let key = |i| f64::from(k.get(at + layout.key(position, i)));
                let products = (0..layout.head_dim).map(|i| f64::from(q.get(start + i)) * key(i));
                products.sum::<f64>() * f64::from(op.scale)
            };
            let scores: Vec<f64> = op.span(row).map(score).collect();
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
            let total: f64 = weights.iter().sum();
            for i in 0..layout.head_dim {
                let value = |position| f64::from(v.get(at + layout.value(position, i)));
                let sum: f64 = op.span(row).zip(&weights).map(|(p, weight)| weight * value(p)).sum();
                values.push(sum / total);
                y.set(start + i, (sum / total) as f32);
            }
        }
        carry.iter_mut().for_each(|carry| carry.row(line, &values));
    }
}
