//! t = the column of A at the row's token, for rows whose slot has factors and whose mask bit is on.

use wattle_shaders::Row;

use crate::{Lora, Read, State, Write};

/// A is \[rank, vocab\] (`lora.cols`), `t` \[rows, t width\]; `states` has an entry per sequence.
pub fn plain(rows: &[Row], lora: &Lora<&dyn Read>, states: &[State], t: &mut dyn Write) {
    for (line, row) in rows.iter().enumerate() {
        let token = states[row.sequence as usize].token(row) as usize;
        for index in 0..lora.targets.len() {
            let Some(pair) = lora.active(index, row) else { continue };
            for r in 0..pair.rank {
                let at = line * lora.t_width() + index * lora.rank + r;
                t.set(at, pair.a.get(r * lora.cols + token));
            }
        }
    }
}
