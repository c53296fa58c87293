//! What is fetched of B while W x is computed.

use std::ops::Range;

use wattle_shaders::Row;

use super::lora::Factor;
use super::simd::{LANES, Simd};
use crate::Lora;

/// Bytes that memory gives at once.
pub(super) const CACHE_LINE: usize = 64;

/// The rows of B that [`super::lora_up::add_up`] will want of a row for some outputs, to be fetched while W x is
/// computed: they are few, far from anything read before, and needed at once after a product's last term. All of them
/// together would fill the queue that the matrix's own bytes need.
pub(super) struct Meanwhile {
    ranges: Vec<Range<*const u8>>,
    /// Cache lines a turn.
    lines: usize,
}

impl Meanwhile {
    /// For `outputs` whose product has a turn for each panel of them.
    pub fn new(lora: &Lora<Factor>, row: &Row, outputs: &Range<usize>) -> Self {
        let mut ranges = Vec::with_capacity(lora.targets.len());
        for (index, target) in lora.targets.iter().enumerate() {
            let (Some(pair), Some(outputs)) = (lora.active(index, row), target.overlap(outputs)) else {
                continue;
            };
            let first = (outputs.start - target.start) / LANES * LANES;
            let last = (outputs.end - target.start).next_multiple_of(LANES);
            let panels = first * pair.rank..last * pair.rank;
            ranges.push(match pair.b {
                Factor::F32(b) => bytes(&b[panels]),
                Factor::F16(b, _) => bytes(&b[panels]),
            });
        }
        let all = Self { ranges, lines: 0 };
        let turns = outputs.len().div_ceil(LANES).max(1);
        Self { lines: all.left().div_ceil(CACHE_LINE).div_ceil(turns), ..all }
    }

    /// Bytes that were not asked for yet.
    fn left(&self) -> usize {
        self.ranges.iter().map(|range| range.end.addr() - range.start.addr()).sum()
    }

    /// Nothing.
    pub fn none() -> Self {
        Self { ranges: Vec::new(), lines: 0 }
    }

    /// Asks for the next few lines.
    #[inline(always)]
    pub fn turn<S: Simd>(&mut self, simd: S) {
        for _ in 0..self.lines {
            let Some(range) = self.ranges.last_mut() else { return };
            simd.prefetch(range.start);
            range.start = range.start.wrapping_add(CACHE_LINE);
            if range.start >= range.end {
                self.ranges.pop();
            }
        }
    }
}

/// Where values lie.
fn bytes<E>(values: &[E]) -> Range<*const u8> {
    let Range { start, end } = values.as_ptr_range();
    start.cast()..end.cast()
}

#[cfg(test)]
mod tests {
    use wattle_shaders::{FactorType, LayerMask};

    use super::super::lora::Factors;
    use super::super::simd::{Work, run};
    use super::*;
    use crate::{Pair, Target};

    /// The bytes that are left after each of some turns.
    struct Turns<'a>(&'a mut Meanwhile, usize);

    impl Work for Turns<'_> {
        type Output = Vec<usize>;

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> Self::Output {
            let turn = |_| {
                self.0.turn(simd);
                self.0.left()
            };
            (0..self.1).map(turn).collect()
        }
    }

    #[test]
    fn all_rows_of_b_are_asked_for_in_equal_turns() {
        let b = Factors::up(&[1.0; 80 * 16], 16, FactorType::F16);
        let pair = || Some(Pair { rank: 16, a: Factor::F32(&[]), b: b.view() });
        let target = |start| Target { start, rows: 80, slots: vec![pair()] };
        let lora = &Lora { layer: 1, cols: 1, rank: 16, part: 1, targets: vec![target(0), target(80)] };
        let row = Row { slot: 0, lora: LayerMask::of([1]).words(), ..Row::prompt(0, 0, 0) };
        // A panel of 16 rows of rank 16 as f16 is 512 bytes.
        let left = |outputs, turns| run(Turns(&mut Meanwhile::new(lora, &row, &outputs), turns));
        assert_eq!(left(32..96, 4), [1536, 1024, 512, 0]);
        assert_eq!(left(0..80, 3), [2048, 1536, 1024]);
        // Outputs that begin within a panel need all of it.
        assert_eq!(left(8..24, 1), [0]);
        let masked = &Row { lora: LayerMask::of([0]).words(), ..row };
        assert!(Meanwhile::new(lora, masked, &(0..80)).ranges.is_empty());
    }
}
