//! t = A x for rows whose slot has factors and whose mask bit is on; other elements of t are left alone.

use wattle_shaders::Row;

use crate::{Lora, Read, Write};

/// `x` \[rows, cols\], `t` \[rows, t width\].
pub fn plain(rows: &[Row], lora: &Lora<&dyn Read>, x: &dyn Read, t: &mut dyn Write) {
    let cols = lora.cols;
    for (line, row) in rows.iter().enumerate() {
        for index in 0..lora.targets.len() {
            let Some(pair) = lora.active(index, row) else { continue };
            for r in 0..pair.rank {
                let product = |i| f64::from(pair.a.get(r * cols + i)) * f64::from(x.get(line * cols + i));
                let sum: f64 = (0..cols).map(product).sum();
                t.set(line * lora.t_width() + index * lora.rank + r, sum as f32);
            }
        }
    }
}
