//! Where the products of a panel go.

use std::ops::Range;

use super::super::simd::{LANES, Simd};
use super::scaling::Chunk;

/// Where the sums of a panel go.
pub(super) struct Sums<'a, 'b> {
    pub y: &'a mut [&'b mut [f32]],
    /// Of the first sum, in a line of y.
    pub at: usize,
    /// Which sums are wanted.
    pub lanes: Range<usize>,
    /// Room for scales and offsets.
    pub rooms: &'a mut [Chunk; 2],
}

impl Sums<'_, '_> {
    #[inline(always)]
    pub fn put<S: Simd>(&mut self, simd: S, line: usize, sums: S::Vector) {
        let to = &mut self.y[line][self.at..][..self.lanes.len()];
        match to.as_mut_array() {
            Some(whole) => simd.store(sums, whole),
            None => {
                let mut values = [0.0; LANES];
                simd.store(sums, &mut values);
                to.copy_from_slice(&values[self.lanes.clone()]);
            }
        }
    }
}
