//! z = x + y.

use crate::{Read, Write};

/// `len` elements each.
pub fn plain(len: usize, x: &dyn Read, y: &dyn Read, z: &mut dyn Write) {
    for i in 0..len {
        z.set(i, x.get(i) + y.get(i));
    }
}
