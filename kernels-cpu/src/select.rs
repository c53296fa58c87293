//! y = the rows of x that are sampled.

use wattle_shaders::Sample;

use crate::{Read, Write};

/// `x` \[rows, width\], `y` \[samples, width\].
pub fn plain(samples: &[Sample], width: usize, x: &dyn Read, y: &mut dyn Write) {
    for (line, sample) in samples.iter().enumerate() {
        for i in 0..width {
            y.set(line * width + i, x.get(sample.row as usize * width + i));
        }
    }
}
