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
            let [k, v] = [k, v].map(|x| (0..layout.head_dim).map(|i| x.get(start + i)).collect::<Vec<_>>());
            cache.put_key(row.sequence, head, row.position as usize, &k);
            cache.put_value(row.sequence, head, row.position as usize, &v);
        }
    }
}
