//! t = A x for rows whose slot has factors and whose mask bit is on; other elements of t are left alone.

use wattle_shaders::Row;

use crate::{Lora, Read, Write};

/// `x` \[rows, cols\], `t` \[rows, partials, t width\].
pub fn plain(rows: &[Row], lora: &Lora<&dyn Read>, x: &dyn Read, t: &mut dyn Write) {
    for (line, row) in rows.iter().enumerate() {
        lora.down(line, row, &|i| f64::from(x.get(line * lora.cols + i)), t);
    }
}
