//! qkv → q: B t is added; RMS norm of every q and k head, rotation of q and k, K and V to the cache.

use wattle_shaders::Row;

use crate::kv_write::Cache;
use crate::norm::Norm;
use crate::rope::Angles;
use crate::{Lora, Read, Write};

/// The operands besides qkv.
pub struct RopeKv<'a> {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Norm of every q head.
    pub q_norm: Option<Norm<&'a dyn Read>>,
    /// Norm of every k head.
    pub k_norm: Option<Norm<&'a dyn Read>>,
    /// Angles, if q and k are rotated.
    pub angles: Option<Angles<&'a dyn Read>>,
    /// Factors of q, k and v, and t.
    pub lora: Option<(&'a Lora<&'a dyn Read>, &'a dyn Read)>,
}

/// `qkv` \[rows, (heads + 2 kv_heads) × head_dim\]: all q heads, all k heads, all v heads; `y` \[rows, heads × head_dim\].
pub fn plain(rows: &[Row], op: &RopeKv, qkv: &dyn Read, y: &mut dyn Write, cache: &mut Cache) {
    let (heads, kv_heads, head_dim) = (op.heads, op.kv_heads, op.head_dim);
    let all = heads + 2 * kv_heads;
    for (line, row) in rows.iter().enumerate() {
        let at = cache.at(row);
        for head in 0..all {
            let value = |i| {
                let y = f64::from(qkv.get((line * all + head) * head_dim + i));
                op.lora.map_or(y, |(lora, t)| lora.add(y, head * head_dim + i, line, row, t))
            };
            let mut values: Vec<f64> = (0..head_dim).map(value).collect();
            let norm = if head < heads { op.q_norm } else { op.k_norm };
            if head < heads + kv_heads {
                values = norm.map_or(values.clone(), |norm| norm.apply(&values));
                op.angles.iter().for_each(|angles| angles.rotate(row, &mut values));
            }
            for (i, value) in values.into_iter().map(|value| value as f32).enumerate() {
                if head < heads {
                    y.set((line * heads + head) * head_dim + i, value);
                } else if head < heads + kv_heads {
                    cache.k.set(at + (head - heads) * head_dim + i, value);
                } else {
                    cache.v.set(at + (head - heads - kv_heads) * head_dim + i, value);
                }
            }
        }
    }
}
