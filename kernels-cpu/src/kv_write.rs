//! K and V to the cache, at the row's sequence and position.

use wattle_shaders::Row;

use crate::Read;
use crate::cache::Cache;

/// `k` and `v` \[rows, kv_heads × head_dim\].
pub fn plain(rows: &[Row], k: &dyn Read, v: &dyn Read, cache: &mut Cache) {
    let layout = cache.layout;
    for (line, row) in rows.iter().enumerate() {
        for head in 0..layout.kv_heads {
            let start = (line * layout.kv_heads + head) * layout.head_dim;
            let (at, position) = (layout.head(row.sequence, head), row.position as usize);
            for i in 0..layout.head_dim {
                cache.k.set(at + layout.key(position, i), k.get(start + i));
                cache.v.set(at + layout.value(position, i), v.get(start + i));
            }
        }
    }
}
