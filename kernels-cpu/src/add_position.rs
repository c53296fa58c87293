//! y = x + table\[position + offset\].

use wattle_shaders::Row;

use crate::{Read, Write};

/// `table` \[positions, width\], `x` and `y` \[rows, width\]; `offset` rows of the table are skipped.
pub fn plain(rows: &[Row], width: usize, offset: u32, table: &dyn Read, x: &dyn Read, y: &mut dyn Write) {
    for (line, row) in rows.iter().enumerate() {
        let position = (row.position + offset) as usize;
        for i in 0..width {
            y.set(line * width + i, x.get(line * width + i) + table.get(position * width + i));
        }
    }
}
