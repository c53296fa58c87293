//! K and V to the cache, at the row's sequence and position.

use wattle_shaders::Row;

use crate::{Read, Write};

/// One layer's cache: K and V, each \[sequences, context, width\].
pub struct Cache<'a> {
    /// Positions of a sequence.
    pub context: usize,
    /// kv_heads × head_dim.
    pub width: usize,
    /// Keys.
    pub k: &'a mut dyn Write,
    /// Values.
    pub v: &'a mut dyn Write,
}

impl Cache<'_> {
    /// Where the cache has element 0 of a row.
    pub fn at(&self, row: &Row) -> usize {
        (row.sequence as usize * self.context + row.position as usize) * self.width
    }
}

/// `k` and `v` \[rows, width\].
pub fn plain(rows: &[Row], k: &dyn Read, v: &dyn Read, cache: &mut Cache) {
    let width = cache.width;
    for (line, row) in rows.iter().enumerate() {
        let at = cache.at(row);
        for i in 0..width {
            cache.k.set(at + i, k.get(line * width + i));
            cache.v.set(at + i, v.get(line * width + i));
        }
    }
}
