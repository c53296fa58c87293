//! LoRA: t = A x, and y + B t.

use std::ops::Range;

use half::f16;
use wattle_shaders::Row;

use super::inputs::Precision;
use super::simd::{Element, LANES, Simd, Work, run};
use super::threads::{Columns, columns, each, lines, parts};
use super::tile::products;
use crate::{Lora, Pair, State};

/// A factor as the fast kernels read it: A row-major \[rank, cols\], B in panels of 16 outputs
/// \[panels, rank, 16\], the last one filled up with zeros.
#[derive(Clone, Copy, Debug)]
pub enum Factor<'a> {
    /// IEEE binary32.
    F32(&'a [f32]),
    /// IEEE binary16.
    F16(&'a [f16]),
}

impl Factor<'_> {
    fn get(&self, index: usize) -> f32 {
        match self {
            Self::F32(values) => values[index],
            Self::F16(values) => values[index].to_f32(),
        }
    }
}

/// The owner of a [`Factor`].
#[derive(Clone, Debug)]
pub enum Factors {
    /// IEEE binary32.
    F32(Vec<f32>),
    /// IEEE binary16.
    F16(Vec<f16>),
}

impl Factors {
    /// A \[rank, cols\]: in fast precision as f16, unless that cannot hold it.
    pub fn down(a: &[f32], precision: Precision) -> Self {
        Self::new(a.to_vec(), precision)
    }

    /// B \[rows, rank\]: in fast precision as f16, unless that cannot hold it.
    pub fn up(b: &[f32], rank: usize, precision: Precision) -> Self {
        let rows = b.len() / rank.max(1);
        let mut panels = vec![0.0; rows.next_multiple_of(LANES) * rank];
        for (row, b) in b.chunks(rank.max(1)).enumerate() {
            for (r, &b) in b.iter().enumerate() {
                panels[(row / LANES * rank + r) * LANES + row % LANES] = b;
            }
        }
        Self::new(panels, precision)
    }

    fn new(values: Vec<f32>, precision: Precision) -> Self {
        let fits = |values: &[f32]| values.iter().all(|value| value.abs() <= f16::MAX.to_f32());
        match precision {
            Precision::Fast if fits(&values) => Self::F16(values.into_iter().map(f16::from_f32).collect()),
            _ => Self::F32(values),
        }
    }

    /// The values.
    pub fn view(&self) -> Factor<'_> {
        match self {
            Self::F32(values) => Factor::F32(values),
            Self::F16(values) => Factor::F16(values),
        }
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        match self {
            Self::F32(values) => size_of_val(&values[..]),
            Self::F16(values) => size_of_val(&values[..]),
        }
    }
}

/// y += B t for the outputs from `start` on of row `line`, the rank's terms in ascending order.
#[inline(always)]
pub(super) fn add_up<S: Simd>(
    simd: S,
    lora: &Lora<Factor>,
    row: &Row,
    line: usize,
    t: &[f32],
    start: usize,
    y: &mut [f32],
) {
    if !row.lora_in(lora.layer) {
        return;
    }
    let end = start + y.len();
    for (index, target) in lora.targets.iter().enumerate() {
        let Some(pair) = lora.active(index, row) else { continue };
        let (from, to) = (start.max(target.start), end.min(target.start + target.rows));
        if from >= to {
            continue;
        }
        let t = &t[line * lora.t_width() + index * lora.rank..][..pair.rank];
        let y = &mut y[from - start..to - start];
        match pair.b {
            Factor::F32(b) => add_rows(simd, b, t, from - target.start, y),
            Factor::F16(b) => add_rows(simd, b, t, from - target.start, y),
        }
    }
}

/// Asks for the rows of B that [`add_up`] will want of `row`: they are few, far from anything read before, and needed
/// at once after a product's last term.
#[inline(always)]
pub(super) fn fetch_up<S: Simd>(simd: S, lora: &Lora<Factor>, row: &Row, outputs: Range<usize>) {
    if !row.lora_in(lora.layer) {
        return;
    }
    for (index, target) in lora.targets.iter().enumerate() {
        let Some(pair) = lora.active(index, row) else { continue };
        let from = outputs.start.max(target.start).saturating_sub(target.start);
        let to = outputs.end.min(target.start + target.rows).saturating_sub(target.start);
        if from < to {
            let panels = from / LANES * LANES * pair.rank..to.next_multiple_of(LANES) * pair.rank;
            match pair.b {
                Factor::F32(b) => fetch(simd, &b[panels]),
                Factor::F16(b) => fetch(simd, &b[panels]),
            }
        }
    }
}

/// Asks for all of some values.
#[inline(always)]
fn fetch<S: Simd, E>(simd: S, values: &[E]) {
    for line in values.chunks(CACHE_LINE / size_of::<E>()) {
        simd.prefetch(line.as_ptr());
    }
}

/// y += B t for the rows of B from `first` on.
#[inline(always)]
fn add_rows<S: Simd, E: Element>(simd: S, b: &[E], t: &[f32], first: usize, y: &mut [f32]) {
    let mut done = 0;
    while done < y.len() {
        let (panel, lane) = ((first + done) / LANES, (first + done) % LANES);
        let b = b[panel * t.len() * LANES..].as_chunks().0;
        let y = &mut y[done..];
        done += match y.len() / LANES {
            TOGETHER.. if lane == 0 => add_panels::<S, E, TOGETHER>(simd, b, t, y),
            1.. if lane == 0 => add_panels::<S, E, 1>(simd, b, t, y),
            _ => {
                let count = (LANES - lane).min(y.len());
                let mut lanes = [0.0; LANES];
                lanes[lane..][..count].copy_from_slice(&y[..count]);
                add_panels::<S, E, 1>(simd, b, t, &mut lanes);
                y[..count].copy_from_slice(&lanes[lane..][..count]);
                count
            }
        };
    }
}

/// Panels whose additions are under way together, so that none waits for the one before.
const TOGETHER: usize = 4;

/// y += B t for P panels; returns how many outputs that is.
#[inline(always)]
fn add_panels<S: Simd, E: Element, const P: usize>(
    simd: S,
    b: &[[E; LANES]],
    t: &[f32],
    y: &mut [f32],
) -> usize {
    let y = &mut y.as_chunks_mut::<LANES>().0[..P];
    let b = &b[..P * t.len()];
    let mut sums = [simd.zero(); P];
    for p in 0..P {
        sums[p] = simd.load(&y[p]);
    }
    let rank = t.len();
    for (r, &t) in t.iter().enumerate() {
        let t = simd.splat(t);
        for p in 0..P {
            sums[p] = simd.fma(E::load(simd, &b[p * rank + r]), t, sums[p]);
        }
    }
    for p in 0..P {
        simd.store(sums[p], &mut y[p]);
    }
    P * LANES
}

/// z = y + B t; `y` and `z` \[rows, width\], `t` \[rows, t width\].
pub fn lora_up(rows: &[Row], width: usize, lora: &Lora<Factor>, y: &[f32], t: &[f32], z: &mut [f32]) {
    z.copy_from_slice(y);
    lines(z, width, z.len() * lora.rank, |first, z| run(Up { rows, width, lora, t, first, z }));
}

struct Up<'a> {
    rows: &'a [Row],
    width: usize,
    lora: &'a Lora<Factor<'a>>,
    t: &'a [f32],
    first: usize,
    z: &'a mut [f32],
}

impl Work for Up<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for (line, z) in (self.first..).zip(self.z.chunks_mut(self.width)) {
            add_up(simd, self.lora, &self.rows[line], line, self.t, 0, z);
        }
    }
}

/// Rows of A that are multiplied together.
const ROWS: usize = 4;

/// Bytes that memory gives at once.
const CACHE_LINE: usize = 64;

/// How many multiply-adds of a few rows a multiply-add of A is worth: it waits for memory.
const COLD: usize = 4;

/// Lines of x that stay in a near cache while A goes by.
const LINES: usize = 16;

/// t = A x for active rows; `x` \[rows, cols\], `t` \[rows, t width\].
pub fn lora_down(rows: &[Row], lora: &Lora<Factor>, x: &[f32], t: &mut [f32]) {
    if t.is_empty() {
        return;
    }
    let per = lora.t_width().div_ceil(parts(COLD * t.len() * lora.cols)).next_multiple_of(ROWS);
    each(columns(t, lora.t_width(), per), |t| run(Down { rows, lora, x, t }));
}

/// Some columns of t.
struct Down<'a> {
    rows: &'a [Row],
    lora: &'a Lora<Factor<'a>>,
    x: &'a [f32],
    t: Columns<'a>,
}

impl Work for Down<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let lora = self.lora;
        for index in 0..lora.targets.len() {
            for (slot, pair) in lora.targets[index].slots.iter().enumerate() {
                let Some(pair) = pair else { continue };
                match pair.a {
                    Factor::F32(a) => self.slot(simd, index, slot, pair, a),
                    Factor::F16(a) => self.slot(simd, index, slot, pair, a),
                }
            }
        }
    }
}

impl Down<'_> {
    /// The rows of a slot together, so that its A is read once.
    #[inline(always)]
    fn slot<S: Simd, E: Element>(
        &mut self,
        simd: S,
        index: usize,
        slot: usize,
        pair: &Pair<Factor>,
        a: &[E],
    ) {
        let Self { rows, lora, x, t: Columns { start, rows: t } } = self;
        let width = t.first().map_or(0, |t| t.len());
        let first = index * lora.rank;
        let (from, to) = (first.max(*start), (first + pair.rank).min(*start + width));
        if from >= to {
            return;
        }
        let own = |line: &usize| rows[*line].slot as usize == slot && rows[*line].lora_in(lora.layer);
        let own: Vec<usize> = (0..rows.len()).filter(own).collect();
        let lines: Vec<&[f32]> = own.iter().map(|line| &x[line * lora.cols..][..lora.cols]).collect();
        let a = &a[(from - first) * lora.cols..];
        for (lines, own) in lines.chunks(LINES).zip(own.chunks(LINES)) {
            products(simd, a, lora.cols, to - from, lora.cols, lines, &mut |line, r, sum| {
                t[own[line]][from - *start + r] = sum;
            });
        }
    }
}

/// t = a column of A for active rows; `t` \[rows, t width\].
pub fn lora_embed(rows: &[Row], lora: &Lora<Factor>, states: &[State], t: &mut [f32]) {
    for (row, t) in rows.iter().zip(t.chunks_mut(lora.t_width().max(1))) {
        let token = states[row.sequence as usize].token(row) as usize;
        for index in 0..lora.targets.len() {
            let Some(pair) = lora.active(index, row) else { continue };
            for (r, t) in t[index * lora.rank..][..pair.rank].iter_mut().enumerate() {
                *t = pair.a.get(r * lora.cols + token);
            }
        }
    }
}
