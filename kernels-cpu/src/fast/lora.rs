//! LoRA factors, and t = A x.

use half::f16;
use wattle_shaders::{FactorType, Row};

use super::simd::{Element, LANES, Simd, Work, run};
use super::threads::{Columns, columns, each, parts};
use super::tile::products;
use crate::{Lora, State, halves};

/// A factor as the fast kernels read it: A row-major \[rank, cols\], B in panels of 16 outputs
/// \[panels, rank, 16\], the last one filled up with zeros.
#[derive(Clone, Copy, Debug)]
pub enum Factor<'a> {
    /// IEEE binary32.
    F32(&'a [f32]),
    /// IEEE binary16, and the power of two that all are multiplied by.
    F16(&'a [f16], f32),
}

impl Factor<'_> {
    fn get(&self, index: usize) -> f32 {
        match self {
            Self::F32(values) => values[index],
            Self::F16(values, scale) => values[index].to_f32() * scale,
        }
    }
}

/// The owner of a [`Factor`].
#[derive(Clone, Debug)]
pub enum Factors {
    /// IEEE binary32.
    F32(Vec<f32>),
    /// IEEE binary16, and the power of two that all are multiplied by.
    F16(Vec<f16>, f32),
}

impl Factors {
    /// A \[rank, cols\].
    pub fn down(a: &[f32], kept: FactorType) -> Self {
        Self::new(a.to_vec(), kept)
    }

    /// B \[rows, rank\].
    pub fn up(b: &[f32], rank: usize, kept: FactorType) -> Self {
        let rows = b.len() / rank.max(1);
        let mut panels = vec![0.0; rows.next_multiple_of(LANES) * rank];
        for (row, b) in b.chunks(rank.max(1)).enumerate() {
            for (r, &b) in b.iter().enumerate() {
                panels[(row / LANES * rank + r) * LANES + row % LANES] = b;
            }
        }
        Self::new(panels, kept)
    }

    fn new(values: Vec<f32>, kept: FactorType) -> Self {
        match kept {
            FactorType::F32 => Self::F32(values),
            FactorType::F16 => {
                let (values, scale) = halves(&values);
                Self::F16(values, scale)
            }
        }
    }

    /// The values.
    pub fn view(&self) -> Factor<'_> {
        match self {
            Self::F32(values) => Factor::F32(values),
            Self::F16(values, scale) => Factor::F16(values, *scale),
        }
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        match self {
            Self::F32(values) => size_of_val(&values[..]),
            Self::F16(values, _) => size_of_val(&values[..]),
        }
    }
}

/// Rows of A that are multiplied together.
const ROWS: usize = 4;

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
                    Factor::F32(a) => self.slot(simd, [index, slot], pair.rank, a, 1.0),
                    Factor::F16(a, scale) => self.slot(simd, [index, slot], pair.rank, a, scale),
                }
            }
        }
    }
}

impl Down<'_> {
    /// The rows of a slot together, so that its A of a target, which is scale · `a`, is read once.
    #[inline(always)]
    fn slot<S: Simd, E: Element>(
        &mut self,
        simd: S,
        [index, slot]: [usize; 2],
        rank: usize,
        a: &[E],
        scale: f32,
    ) {
        let Self { rows, lora, x, t: Columns { start, rows: t } } = self;
        let width = t.first().map_or(0, |t| t.len());
        let first = index * lora.rank;
        let (from, to) = (first.max(*start), (first + rank).min(*start + width));
        if from >= to {
            return;
        }
        let own = |line: &usize| rows[*line].slot as usize == slot && rows[*line].lora_in(lora.layer);
        let own: Vec<usize> = (0..rows.len()).filter(own).collect();
        let lines: Vec<&[f32]> = own.iter().map(|line| &x[line * lora.cols..][..lora.cols]).collect();
        let a = &a[(from - first) * lora.cols..];
        for (lines, own) in lines.chunks(LINES).zip(own.chunks(LINES)) {
            products(simd, a, lora.cols, to - from, lora.cols, lines, &mut |line, r, sum| {
                t[own[line]][from - *start + r] = sum * scale;
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
