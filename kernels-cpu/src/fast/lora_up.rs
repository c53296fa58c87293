//! y + B t.

use std::ops::Range;

use wattle_shaders::Row;

use super::lora::Factor;
use super::simd::{Element, LANES, Simd, Work, run};
use super::threads::lines;
use crate::{Lora, Target};

/// Bytes that memory gives at once.
const CACHE_LINE: usize = 64;

/// Bytes of B that stay in a second-level cache while W x is computed for the outputs that they belong to.
const NEAR: usize = 1 << 15;

/// How many outputs, in whole panels, to compute and to add B t to before the next: more, and their rows of B would be
/// gone from near caches again, having been fetched with W x.
pub(super) fn stretch(lora: &Lora<Factor>) -> usize {
    (NEAR / (lora.rank.max(1) * size_of::<half::f16>())).next_multiple_of(LANES)
}

/// Those of some outputs that a target has; nothing if that is none.
fn overlap<T>(target: &Target<T>, outputs: &Range<usize>) -> Option<Range<usize>> {
    let from = outputs.start.max(target.start);
    let to = outputs.end.min(target.start + target.rows);
    (from < to).then_some(from..to)
}

/// The rows of B that [`add_up`] will want of a row for some outputs, to be fetched while W x is computed: they are few,
/// far from anything read before, and needed at once after a product's last term. All of them together would fill the
/// queue that the matrix's own bytes need.
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
            let (Some(pair), Some(outputs)) = (lora.active(index, row), overlap(target, outputs)) else {
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

/// y += B t for the outputs from `start` on of all rows, a line of y for each; each sum takes the rank's terms in ascending order.
#[inline(always)]
pub(super) fn add_up<S: Simd>(
    simd: S,
    lora: &Lora<Factor>,
    rows: &[Row],
    t: &[f32],
    start: usize,
    y: &mut [&mut [f32]],
) {
    let width = y.first().map_or(0, |y| y.len());
    for (index, target) in lora.targets.iter().enumerate() {
        let Some(outputs) = overlap(target, &(start..start + width)) else { continue };
        let (first, at) = (outputs.start - target.start, outputs.start - start);
        let mut line = 0;
        while line < y.len() {
            let Some(pair) = lora.active(index, &rows[line]) else {
                line += 1;
                continue;
            };
            let count = alike(lora, &rows[line..]);
            let mut ts = [&[][..]; TOGETHER];
            for n in 0..count {
                ts[n] = &t[lora.t_at(line + n, 0, index)..][..pair.rank];
            }
            let (ts, y) = (&ts[..count], &mut y[line..][..count]);
            let (rank, width) = (pair.rank, outputs.len());
            match pair.b {
                Factor::F32(b) => Up { b, scale: 1.0, rank, first, at, width }.add(simd, ts, y),
                Factor::F16(b, scale) => Up { b, scale, rank, first, at, width }.add(simd, ts, y),
            }
            line += count;
        }
    }
}

/// Lines that an element of B is loaded once for.
const TOGETHER: usize = 4;

/// How many of the rows, from the first on, have its factors: at most [`TOGETHER`].
fn alike(lora: &Lora<Factor>, rows: &[Row]) -> usize {
    let same = |row: &&Row| row.slot == rows[0].slot && row.lora_in(lora.layer);
    rows.iter().take(TOGETHER).take_while(same).count()
}

/// Rows of B, and the outputs that they are for.
struct Up<'a, E> {
    b: &'a [E],
    /// What they are multiplied by.
    scale: f32,
    rank: usize,
    /// The first of B's rows.
    first: usize,
    /// Its output in a line of y.
    at: usize,
    /// How many rows.
    width: usize,
}

impl<E: Element> Up<'_, E> {
    /// y += B t for some lines.
    #[inline(always)]
    fn add<S: Simd>(&self, simd: S, t: &[&[f32]], y: &mut [&mut [f32]]) {
        let mut n = 0;
        while n < t.len() {
            let (t, y) = (&t[n..], &mut y[n..]);
            n += match t.len() {
                4.. if S::WIDE => self.lines::<S, 4>(simd, t, y),
                2.. => self.lines::<S, 2>(simd, t, y),
                _ => self.lines::<S, 1>(simd, t, y),
            };
        }
    }

    /// For the first N of the lines; returns N. As many panels at once as there are registers for, so that no addition
    /// waits for the one before.
    #[inline(always)]
    fn lines<S: Simd, const N: usize>(&self, simd: S, t: &[&[f32]], y: &mut [&mut [f32]]) -> usize {
        let mut done = 0;
        while done < self.width {
            let (panel, lane) = ((self.first + done) / LANES, (self.first + done) % LANES);
            let b = self.b[panel * self.rank * LANES..].as_chunks().0;
            let (at, rest, scale) = (self.at + done, self.width - done, self.scale);
            done += match rest / LANES {
                4.. if lane == 0 && N == 1 => panels::<S, E, 4, N>(simd, b, scale, t, y, at),
                2.. if lane == 0 => panels::<S, E, 2, N>(simd, b, scale, t, y, at),
                1.. if lane == 0 => panels::<S, E, 1, N>(simd, b, scale, t, y, at),
                _ => {
                    let count = (LANES - lane).min(rest);
                    for n in 0..N {
                        let y = &mut y[n][at..][..count];
                        let mut lanes = [0.0; LANES];
                        lanes[lane..][..count].copy_from_slice(y);
                        panels::<S, E, 1, 1>(simd, b, scale, &t[n..], &mut [&mut lanes], 0);
                        y.copy_from_slice(&lanes[lane..][..count]);
                    }
                    count
                }
            };
        }
        N
    }
}

/// y += scale · B t for P panels and N lines, from element `at` of the lines on; returns how many outputs that is.
#[inline(always)]
fn panels<S: Simd, E: Element, const P: usize, const N: usize>(
    simd: S,
    b: &[[E; LANES]],
    scale: f32,
    t: &[&[f32]],
    y: &mut [&mut [f32]],
    at: usize,
) -> usize {
    let rank = t[0].len();
    let b = &b[..P * rank];
    let mut sums = [[simd.zero(); P]; N];
    for n in 0..N {
        let y = y[n][at..].as_chunks().0;
        for p in 0..P {
            sums[n][p] = simd.load(&y[p]);
        }
    }
    for r in 0..rank {
        let mut elements = [simd.zero(); P];
        for p in 0..P {
            elements[p] = E::load(simd, &b[p * rank + r]);
        }
        for n in 0..N {
            let t = simd.splat(t[n][r] * scale);
            for p in 0..P {
                sums[n][p] = simd.fma(elements[p], t, sums[n][p]);
            }
        }
    }
    for n in 0..N {
        let y = y[n][at..].as_chunks_mut().0;
        for p in 0..P {
            simd.store(sums[n][p], &mut y[p]);
        }
    }
    P * LANES
}

/// z = y + B t; `y` and `z` \[rows, width\], `t` \[rows, t width\].
pub fn lora_up(rows: &[Row], width: usize, lora: &Lora<Factor>, y: &[f32], t: &[f32], z: &mut [f32]) {
    z.copy_from_slice(y);
    lines(z, width, z.len() * lora.rank, |first, z| run(AddUp { rows, width, lora, t, first, z }));
}

struct AddUp<'a> {
    rows: &'a [Row],
    width: usize,
    lora: &'a Lora<Factor<'a>>,
    t: &'a [f32],
    first: usize,
    z: &'a mut [f32],
}

impl Work for AddUp<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let z = &mut self.z.chunks_mut(self.width).collect::<Vec<_>>();
        let (rows, t) = (&self.rows[self.first..][..z.len()], &self.t[self.first * self.lora.t_width()..]);
        add_up(simd, self.lora, rows, t, 0, z);
    }
}

#[cfg(test)]
mod tests {
    use wattle_shaders::{FactorType, LayerMask};

    use super::super::lora::Factors;
    use super::super::simd::{run, run_all};
    use super::*;
    use crate::Pair;

    /// y + B t, of rows of zeros.
    #[derive(Clone, Copy)]
    struct Sums<'a> {
        lora: &'a Lora<Factor<'a>>,
        rows: &'a [Row],
        t: &'a [f32],
        outputs: [usize; 2],
    }

    impl Work for Sums<'_> {
        type Output = Vec<Vec<f32>>;

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> Self::Output {
            let [start, width] = self.outputs;
            let mut y = vec![vec![0.0; width]; self.rows.len()];
            let lines = &mut y.iter_mut().map(|y| &mut y[..]).collect::<Vec<_>>();
            add_up(simd, self.lora, self.rows, self.t, start, lines);
            y
        }
    }

    fn numbers(count: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 29 + 7) % 64) as f32 / 32.0 - 1.0).collect()
    }

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
        let b = Factors::up(&numbers(80 * 16), 16, FactorType::F16);
        let pair = || Some(Pair { rank: 16, a: Factor::F32(&[]), b: b.view() });
        let target = |start| Target { start, rows: 80, slots: vec![pair()] };
        let lora = &Lora { layer: 1, cols: 1, rank: 16, part: 1, targets: vec![target(0), target(80)] };
        let row = &rows()[0];
        // A panel of 16 rows of rank 16 as f16 is 512 bytes.
        let left = |outputs, turns| run(Turns(&mut Meanwhile::new(lora, row, &outputs), turns));
        assert_eq!(left(32..96, 4), [1536, 1024, 512, 0]);
        assert_eq!(left(0..80, 3), [2048, 1536, 1024]);
        // Outputs that begin within a panel need all of it.
        assert_eq!(left(8..24, 1), [0]);
        let masked = &rows()[7];
        assert!(Meanwhile::new(lora, masked, &(0..80)).ranges.is_empty());
    }

    /// Lines of two adapters, in runs of five, two and one; one line that is masked.
    fn rows() -> Vec<Row> {
        let row = |slot| Row { slot, lora: LayerMask::of([1]).words(), ..Row::prompt(0, 0, 0) };
        let mut rows = [0, 0, 0, 0, 0, 1, 1, 0, 1].map(row);
        rows[7].lora = LayerMask::of([0]).words();
        rows.to_vec()
    }

    #[test]
    fn lines_together_are_bit_equal_to_lines_alone() {
        // Of the targets' outputs, and of the slots' ranks; slot 0 is kept as f32, slot 1 as f16.
        let (places, ranks) = ([[3, 40], [43, 75]], [5, 3]);
        let b = |slot: usize, rows: usize| numbers(rows * ranks[slot]);
        let factors =
            places.map(|[_, rows]| [0, 1].map(|s| Factors::up(&b(s, rows), ranks[s], FactorType::ALL[s])));
        let pair = |target: usize, s: usize| {
            Some(Pair { rank: ranks[s], a: Factor::F32(&[]), b: factors[target][s].view() })
        };
        let target = |i: usize| Target {
            start: places[i][0],
            rows: places[i][1],
            slots: vec![pair(i, 0), pair(i, 1)],
        };
        let lora = &Lora { layer: 1, cols: 1, rank: 5, part: 1, targets: vec![target(0), target(1)] };
        let (rows, t) = (&rows(), &numbers(9 * lora.t_width()));
        for outputs in [[0, 130], [19, 64], [50, 7]] {
            let together = run_all(Sums { lora, rows, t, outputs });
            for line in 0..rows.len() {
                let (row, t) = (&rows[line..=line], &t[line * lora.t_width()..]);
                let alone = run_all(Sums { lora, rows: row, t, outputs });
                for (together, alone) in together.iter().zip(alone) {
                    assert_eq!(together[line], alone[0], "line {line}");
                }
                for (output, &sum) in (outputs[0]..).zip(&together[0][line]) {
                    let Some(index) = lora.target_of(output).and_then(|i| lora.active(i, &row[0]).map(|_| i))
                    else {
                        assert_eq!(sum, 0.0, "line {line}, output {output}");
                        continue;
                    };
                    let ([start, rows], slot) = (places[index], row[0].slot as usize);
                    let b = &b(slot, rows)[(output - start) * ranks[slot]..][..ranks[slot]];
                    // All numbers are multiples of 1/32 that f16 holds: no sum of so few products rounds.
                    let exact: f32 = b.iter().zip(&t[index * lora.rank..]).map(|(b, t)| b * t).sum();
                    assert_eq!(sum, exact, "line {line}, output {output}");
                }
            }
        }
    }
}
