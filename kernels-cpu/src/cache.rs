//! Where the KV cache has its elements on the CPU.

use crate::{Read, Write};

/// Positions of a panel of keys.
pub const POSITIONS: usize = 16;

/// How K and V of one layer lie: per sequence and head, and so that attention reads them from beginning to end. Keys
/// are panels of 16 positions, \[panels, head_dim, 16\], because scores of 16 positions are summed side by side; values
/// are \[positions, head_dim\].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Key and value heads.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Positions of a sequence.
    pub context: usize,
}

impl Layout {
    /// Elements of one head of one sequence: it has room for whole panels.
    pub fn head_len(&self) -> usize {
        self.context.next_multiple_of(POSITIONS) * self.head_dim
    }

    /// Elements of one sequence.
    pub fn sequence_len(&self) -> usize {
        self.kv_heads * self.head_len()
    }

    /// Where a head of a sequence begins.
    pub fn head(&self, sequence: u32, kv_head: usize) -> usize {
        sequence as usize * self.sequence_len() + kv_head * self.head_len()
    }

    /// Where a head has element `i` of a position's key.
    pub fn key(&self, position: usize, i: usize) -> usize {
        (position / POSITIONS * self.head_dim + i) * POSITIONS + position % POSITIONS
    }

    /// Where a head has element `i` of a position's value.
    pub fn value(&self, position: usize, i: usize) -> usize {
        position * self.head_dim + i
    }
}

/// K and V of one layer, to write.
pub struct Cache<'a> {
    /// Of both.
    pub layout: Layout,
    /// Keys.
    pub k: &'a mut dyn Write,
    /// Values.
    pub v: &'a mut dyn Write,
}

/// K and V of one layer, to read.
#[derive(Clone, Copy)]
pub struct Cached<'a> {
    /// Of both.
    pub layout: Layout,
    /// Keys.
    pub k: &'a dyn Read,
    /// Values.
    pub v: &'a dyn Read,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_has_a_place_of_its_own() {
        let layout = Layout { kv_heads: 3, head_dim: 5, context: 19 };
        let mut seen = [vec![false; 2 * layout.sequence_len()], vec![false; 2 * layout.sequence_len()]];
        for (sequence, kv_head) in [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)] {
            for (position, i) in (0..19).flat_map(|position| (0..5).map(move |i| (position, i))) {
                let start = layout.head(sequence, kv_head);
                for (seen, at) in seen.iter_mut().zip([layout.key(position, i), layout.value(position, i)]) {
                    assert!(at < layout.head_len() && !seen[start + at], "{position} {i}");
                    seen[start + at] = true;
                }
            }
        }
    }
}
