//! qkv → q: B t is added; RMS norm of every q and k head, rotation of q and k, K and V to the cache.

use wattle_shaders::Row;

use crate::cache::Cache;
use crate::norm::Norm;
use crate::rope::Angles;
use crate::{Lora, Read, Write};

/// The operands besides qkv.
pub struct RopeKv<'a> {
    /// Query heads.
    pub heads: usize,
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
    let layout = cache.layout;
    let (heads, kv_heads, head_dim) = (op.heads, layout.kv_heads, layout.head_dim);
    let all = heads + 2 * kv_heads;
    for (line, row) in rows.iter().enumerate() {
        let position = row.position as usize;
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
                    let at = layout.head(row.sequence, head - heads);
                    cache.k.set(at + layout.key(position, i), value);
                } else {
                    let at = layout.head(row.sequence, head - heads - kv_heads);
                    cache.v.set(at + layout.value(position, i), value);
                }
            }
        }
    }
}
