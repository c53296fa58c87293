//! y + B t.

use wattle_shaders::Row;

use super::lora::Factor;
use super::simd::{Element, LANES, Simd, Work, run};
use super::threads::lines;
use crate::Lora;

/// Bytes of B that stay in a second-level cache while W x is computed for the outputs that they belong to.
const NEAR: usize = 1 << 16;

/// How many outputs, in whole panels, to compute and to add B t to before the next: more, and their rows of B would be
/// gone from near caches again, having been fetched with W x.
pub(super) fn stretch(lora: &Lora<Factor>) -> usize {
    (NEAR / (lora.rank.max(1) * size_of::<half::f16>())).next_multiple_of(LANES)
}

/// y += B t for the outputs from `start` on of all rows, a line of y for each; each sum takes the rank's terms in
/// ascending order.
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
        let Some(outputs) = target.overlap(&(start..start + width)) else { continue };
        let (first, at) = (outputs.start - target.start, outputs.start - start);
        let mut line = 0;
        while line < y.len() {
            let Some(pair) = lora.active(index, &rows[line]) else {
                line += 1;
                continue;
            };
            let count = alike(lora, &rows[line..]);
            let ts = |n: usize| &t[lora.t_at(line + n, 0, index)..][..pair.rank];
            let (y, rank, width) = (&mut y[line..][..count], pair.rank, outputs.len());
            match pair.b {
                Factor::F32(b) => Up { b, scale: 1.0, rank, first, at, width }.add(simd, ts, y),
                Factor::F16(b, scale) => Up { b, scale, rank, first, at, width }.add(simd, ts, y),
            }
            line += count;
        }
    }
}

/// Lines that an element of B is loaded once for.
const TOGETHER: usize = 8;

/// Terms of a sum that are added before the next ones' t is laid out.
const TERMS: usize = 64;

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
    /// y += B t for some lines; `t(n)` is that of line n.
    #[inline(always)]
    fn add<'t, S: Simd>(&self, simd: S, t: impl Fn(usize) -> &'t [f32], y: &mut [&mut [f32]]) {
        let mut terms = [[0.0; TOGETHER]; TERMS];
        for from in (0..self.rank).step_by(TERMS) {
            let terms = &mut terms[..TERMS.min(self.rank - from)];
            for n in 0..y.len() {
                for (term, t) in terms.iter_mut().zip(&t(n)[from..]) {
                    // Exact: the scale is a power of two.
                    term[n] = t * self.scale;
                }
            }
            let mut n = 0;
            while n < y.len() {
                let (y, terms) = (&mut y[n..], Terms { from, first: n, t: terms });
                n += match y.len() {
                    8.. if S::WIDE => self.lines::<S, 8>(simd, terms, y),
                    4.. if S::WIDE => self.lines::<S, 4>(simd, terms, y),
                    2.. => self.lines::<S, 2>(simd, terms, y),
                    _ => self.lines::<S, 1>(simd, terms, y),
                };
            }
        }
    }

    /// For the first N of the lines; returns N. As many panels at once as there are registers for, so that no addition
    /// waits for the one before.
    #[inline(always)]
    fn lines<S: Simd, const N: usize>(&self, simd: S, terms: Terms, y: &mut [&mut [f32]]) -> usize {
        let mut done = 0;
        while done < self.width {
            let (panel, lane) = ((self.first + done) / LANES, (self.first + done) % LANES);
            let b = &self.b[panel * self.rank * LANES..].as_chunks().0[terms.from..];
            let (at, rest) = (self.at + done, self.width - done);
            done += match rest / LANES {
                4.. if lane == 0 && (N == 1 || N == 4) => self.panels::<S, 4, N>(simd, b, terms, y, at),
                2.. if lane == 0 => self.panels::<S, 2, N>(simd, b, terms, y, at),
                1.. if lane == 0 => self.panels::<S, 1, N>(simd, b, terms, y, at),
                _ => {
                    let count = (LANES - lane).min(rest);
                    for n in 0..N {
                        let y = &mut y[n][at..][..count];
                        let mut lanes = [0.0; LANES];
                        lanes[lane..][..count].copy_from_slice(y);
                        let terms = Terms { first: terms.first + n, ..terms };
                        self.panels::<S, 1, 1>(simd, b, terms, &mut [&mut lanes], 0);
                        y.copy_from_slice(&lanes[lane..][..count]);
                    }
                    count
                }
            };
        }
        N
    }

    /// y += B t for P panels and N lines, from element `at` of the lines on; returns how many outputs that is. `b` begins
    /// with the first panel's first term.
    #[inline(always)]
    fn panels<S: Simd, const P: usize, const N: usize>(
        &self,
        simd: S,
        b: &[[E; LANES]],
        terms: Terms,
        y: &mut [&mut [f32]],
        at: usize,
    ) -> usize {
        let mut sums = [[simd.zero(); P]; N];
        for n in 0..N {
            let y = y[n][at..].as_chunks().0;
            for p in 0..P {
                sums[n][p] = simd.load(&y[p]);
            }
        }
        let mut panels = [&b[..0]; P];
        for p in 0..P {
            panels[p] = &b[p * self.rank..][..terms.t.len()];
        }
        for (r, t) in terms.t.iter().enumerate() {
            let mut elements = [simd.zero(); P];
            for p in 0..P {
                elements[p] = E::load(simd, &panels[p][r]);
            }
            for n in 0..N {
                // Never more than there are lines: said so that no check is needed.
                let t = simd.splat(t[(terms.first + n) % TOGETHER]);
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
}

/// Some terms of B t.
#[derive(Clone, Copy)]
struct Terms<'a> {
    /// The first one of the rank.
    from: usize,
    /// Which of the lines is the first.
    first: usize,
    /// t of all lines, term by term.
    t: &'a [[f32; TOGETHER]],
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
    use super::super::simd::run_all;
    use super::*;
    use crate::{Pair, Target};

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

    /// Lines of two adapters, in runs of 14, two and one; one line that is masked.
    fn rows() -> Vec<Row> {
        let row = |slot| Row { slot, lora: LayerMask::of([1]).words(), ..Row::prompt(0, 0, 0) };
        let mut rows: Vec<Row> = [[0; 14].as_slice(), &[1, 1, 0, 1]].concat().into_iter().map(row).collect();
        rows[16].lora = LayerMask::of([0]).words();
        rows
    }

    #[test]
    fn lines_together_are_bit_equal_to_lines_alone() {
        check([5, TERMS + 3], [FactorType::F32, FactorType::F16]);
        check([TERMS + 3, 5], [FactorType::F16, FactorType::F32]);
    }

    /// With these ranks in the slots, kept so.
    fn check(ranks: [usize; 2], kept: [FactorType; 2]) {
        let places = [[3, 40], [43, 75]];
        let b = |slot: usize, rows: usize| numbers(rows * ranks[slot]);
        let factors = places.map(|[_, rows]| [0, 1].map(|s| Factors::up(&b(s, rows), ranks[s], kept[s])));
        let pair = |target: usize, s: usize| {
            Some(Pair { rank: ranks[s], a: Factor::F32(&[]), b: factors[target][s].view() })
        };
        let target = |i: usize| Target {
            start: places[i][0],
            rows: places[i][1],
            slots: vec![pair(i, 0), pair(i, 1)],
        };
        let lora = &Lora { layer: 1, cols: 1, rank: TERMS + 3, part: 1, targets: vec![target(0), target(1)] };
        let (rows, t) = (&rows(), &numbers(18 * lora.t_width()));
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
