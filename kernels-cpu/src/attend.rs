//! y = softmax(scale · q Kᵀ) V (Vaswani et al. 2017, equation 1) over the positions that a row may see.

use wattle_shaders::Row;

use crate::{Carry, Read, Write};

/// Shapes and rules.
#[derive(Clone, Copy, Debug)]
pub struct Attend {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Positions of a sequence that the cache has room for.
    pub context: usize,
    /// Multiplies q·k.
    pub scale: f32,
    /// Only the last so many positions, the own one included.
    pub window: Option<u32>,
}

impl Attend {
    /// The positions that a row sees.
    pub fn span(&self, row: &Row) -> std::ops::Range<usize> {
        let end = row.position as usize + 1;
        self.window.map_or(0, |window| end.saturating_sub(window as usize))..end
    }

    /// Where the cache has element 0 of what query head `head` reads: head `head / (heads / kv_heads)`.
    pub fn at(&self, row: &Row, position: usize, head: usize) -> usize {
        let kv_head = head / (self.heads / self.kv_heads);
        ((row.sequence as usize * self.context + position) * self.kv_heads + kv_head) * self.head_dim
    }
}

/// `q` and `y` \[rows, heads × head_dim\]; `k` and `v` \[sequences, context, kv_heads × head_dim\]; what is carried has y
/// as its input.
pub fn plain(
    rows: &[Row],
    op: &Attend,
    q: &dyn Read,
    [k, v]: [&dyn Read; 2],
    y: &mut dyn Write,
    mut carry: Option<Carry>,
) {
    for (line, row) in rows.iter().enumerate() {
        let mut values = Vec::new();
        for head in 0..op.heads {
            let start = (line * op.heads + head) * op.head_dim;
            let score = |position| {
                let at = op.at(row, position, head);
                let products =
                    (0..op.head_dim).map(|i| f64::from(q.get(start + i)) * f64::from(k.get(at + i)));
                products.sum::<f64>() * f64::from(op.scale)
            };
            let scores: Vec<f64> = op.span(row).map(score).collect();
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
            let total: f64 = weights.iter().sum();
            for i in 0..op.head_dim {
                let value = |position| f64::from(v.get(op.at(row, position, head) + i));
                let sum: f64 = op.span(row).zip(&weights).map(|(p, weight)| weight * value(p)).sum();
                values.push(sum / total);
                y.set(start + i, (sum / total) as f32);
            }
        }
        carry.iter_mut().for_each(|carry| carry.row(line, &values));
    }
}
