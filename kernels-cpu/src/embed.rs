//! y = table\[token\]; marks the token as seen in the row's sequence.

use wattle_shaders::Row;

use crate::{Read, State, Write};

/// `table` \[vocab, width\], `y` \[rows, width\]; `states` has an entry per sequence.
pub fn plain(rows: &[Row], width: usize, table: &dyn Read, states: &mut [State], y: &mut dyn Write) {
    for (line, row) in rows.iter().enumerate() {
        let state = &mut states[row.sequence as usize];
        let token = state.token(row);
        state.mark(token);
        for i in 0..width {
            y.set(line * width + i, table.get(token as usize * width + i));
        }
    }
}
