//! LoRA factors, and t = A x.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

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
    let per = columns_of_t(rows.len(), lora);
    each(columns(t, lora.t_width(), per), |t| run(Down { rows, lora, x, t }));
}

/// How many columns of t are made together.
fn columns_of_t(rows: usize, lora: &Lora<Factor>) -> usize {
    let width = lora.t_width();
    width.div_ceil(parts(COLD * rows * width * lora.cols)).max(1).next_multiple_of(ROWS)
}

/// Where t = A x comes from.
#[derive(Clone, Copy, Debug)]
pub enum Carried<'a> {
    /// It is there: \[rows, t width\].
    Made(&'a [f32]),
    /// Nobody made it: whoever multiplies W with this x \[rows, cols\] does, too.
    From(&'a [f32]),
}

/// t as the threads of a projection make it, each what no other has begun, before they begin with W x: when they are done
/// with that it is there, and nobody had to wait for a step of its own.
pub(super) struct Making<'a> {
    rows: &'a [Row],
    lora: &'a Lora<Factor<'a>>,
    x: &'a [f32],
    /// Columns of t in a part.
    per: usize,
    parts: Vec<OnceLock<Vec<f32>>>,
    next: AtomicUsize,
}

impl<'a> Making<'a> {
    pub fn new(rows: &'a [Row], lora: &'a Lora<Factor<'a>>, x: &'a [f32]) -> Self {
        let per = columns_of_t(rows.len(), lora);
        let parts = (0..lora.t_width()).step_by(per).map(|_| OnceLock::new()).collect();
        Self { rows, lora, x, per, parts, next: AtomicUsize::new(0) }
    }

    /// The factors.
    pub fn lora(&self) -> &'a Lora<Factor<'a>> {
        self.lora
    }

    /// Makes parts for as long as there are any that nobody has begun.
    pub fn help(&self) {
        loop {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(part) = self.parts.get(index) else { return };
            part.get_or_init(|| self.make(index));
        }
    }

    /// All of t; waits for parts that others have begun. Making a part waits for nothing.
    pub fn t(&self) -> Vec<f32> {
        let width = self.lora.t_width();
        let mut t = vec![0.0; self.rows.len() * width];
        for (index, part) in self.parts.iter().enumerate() {
            let made = part.get_or_init(|| self.make(index));
            let (start, columns) = self.columns(index);
            for (t, made) in t.chunks_mut(width).zip(made.chunks(columns)) {
                t[start..][..columns].copy_from_slice(made);
            }
        }
        t
    }

    /// The first column of a part, and how many it has.
    fn columns(&self, index: usize) -> (usize, usize) {
        let start = index * self.per;
        (start, self.per.min(self.lora.t_width() - start))
    }

    fn make(&self, index: usize) -> Vec<f32> {
        let (start, columns) = self.columns(index);
        let mut t = vec![0.0; self.rows.len() * columns];
        let Self { rows, lora, x, .. } = *self;
        run(Down { rows, lora, x, t: Columns { start, rows: t.chunks_mut(columns).collect() } });
        t
    }
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
