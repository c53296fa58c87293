//! z = y + B t for rows whose slot has factors and whose mask bit is on, y for others.

use wattle_shaders::Row;

use crate::{Lora, Read, Write};

/// `y` and `z` \[rows, width\], `t` \[rows, t width\].
pub fn plain(
    rows: &[Row],
    width: usize,
    lora: &Lora<&dyn Read>,
    y: &dyn Read,
    t: &dyn Read,
    z: &mut dyn Write,
) {
    for (line, row) in rows.iter().enumerate() {
        for output in 0..width {
            let sum = f64::from(y.get(line * width + output));
            z.set(line * width + output, lora.add(sum, output, line, row, t) as f32);
        }
    }
}
