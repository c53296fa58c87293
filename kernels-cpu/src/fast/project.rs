//! W x with its epilogues.

use std::ops::Range;
use std::sync::OnceLock;

use wattle_shaders::Row;

use super::inputs::{Lines, Precision};
use super::lora::{Carried, Factor, Making};
use super::lora_up::{add_up, stretch};
use super::math;
use super::meanwhile::Meanwhile;
use super::panel;
use super::simd::{Element, LANES, Simd, Work, run};
use super::threads::{Columns, columns, each, parts};
use super::tile::products;
use crate::activate::Function;
use crate::panels::{Offsets, Panels};
use crate::{Lora, Stored, Weight};

/// The operands besides x; see the twin's.
#[derive(Clone, Copy)]
pub struct Project<'a> {
    /// One per row of x.
    pub rows: &'a [Row],
    /// W.
    pub weight: &'a Weight<'a>,
    /// Rows of W.
    pub outputs: usize,
    /// b.
    pub bias: Option<&'a [f32]>,
    /// Factors and t.
    pub lora: Option<(&'a Lora<Factor<'a>>, Carried<'a>)>,
    /// Applied to the sum.
    pub activation: Option<Function>,
    /// r.
    pub residual: Option<&'a [f32]>,
    /// Of x, where W is quantized.
    pub precision: Precision,
}

/// The operands besides x; see the twin's.
#[derive(Clone, Copy)]
pub struct GateUp<'a> {
    /// One per row of x.
    pub rows: &'a [Row],
    /// G and U.
    pub weights: [&'a Weight<'a>; 2],
    /// Rows of G and of U.
    pub outputs: usize,
    /// b_g and b_u.
    pub biases: [Option<&'a [f32]>; 2],
    /// f.
    pub function: Function,
    /// Factors and t.
    pub lora: Option<(&'a Lora<Factor<'a>>, Carried<'a>)>,
    /// Of x, where G and U are quantized.
    pub precision: Precision,
}

/// Lines of x that are multiplied with a block of the matrix while both stay in the nearest cache.
const LINES: usize = 16;

/// Elements of a matrix block: half of a usual second-level cache, if they are f32.
const BLOCK: usize = 1 << 16;

/// x: as it is, and as quantized matrices want it. Several matrices have columns of one order.
struct Operand<'a> {
    floats: Vec<&'a [f32]>,
    lines: Option<Lines>,
}

impl<'a> Operand<'a> {
    fn new(x: &'a [f32], weights: &[&Weight], precision: Precision) -> Self {
        let cols = weights[0].cols;
        let mut parts = weights.iter().flat_map(|weight| &weight.parts);
        let panels = parts.find_map(|(_, stored)| match stored {
            Stored::Panels(panels) => Some(panels),
            _ => None,
        });
        let rounded =
            |panels: &Panels| precision == Precision::Fast && !matches!(panels.offsets, Offsets::NormalFloat);
        let sorted = weights[0].order.map(|order| order.sorted(x));
        let stored = sorted.as_deref().unwrap_or(x);
        let lines = panels.map(|panels| Lines::new(stored, cols, rounded(panels)));
        Self { floats: x.chunks(cols.max(1)).collect(), lines }
    }
}

/// Outputs of a block, in whole panels: as many as threads and, for a dense matrix, the cache want. Quantized ones see to
/// the cache themselves, panel by panel.
fn block(outputs: usize, x: &Operand, matrices: usize) -> usize {
    let (rows, inputs) = (x.floats.len(), x.floats.first().map_or(1, |x| x.len().max(1)));
    let parts = parts(matrices * rows * inputs * outputs);
    // One row waits for memory, which gives long stretches faster than many short ones.
    let parts = if rows == 1 { parts.div_ceil(2) } else { parts };
    let most = if x.lines.is_some() { usize::MAX } else { (BLOCK / inputs).max(4) };
    outputs.div_ceil(parts).min(most).next_multiple_of(LANES)
}

/// `x` \[rows, inputs\], `y` \[rows, outputs\].
pub fn project(op: &Project, x: &[f32], y: &mut [f32]) {
    let x = &Operand::new(x, &[op.weight], op.precision);
    let (per, lora) = (block(op.outputs, x, 1), &T::of(op.rows, op.lora));
    each(columns(y, op.outputs, per), |columns| {
        lora.help();
        for mut columns in stretches(columns, op.lora) {
            let meanwhile = &mut meanwhile(op.rows, op.lora, &columns.range());
            linear(op.weight, op.bias, x, columns.start, &mut columns.rows, meanwhile);
            run(ProjectEnd { op, lora: lora.get(), columns });
        }
    });
}

/// t, wherever it comes from.
enum T<'a> {
    None,
    Made(&'a Lora<Factor<'a>>, &'a [f32]),
    Making(Making<'a>, OnceLock<Vec<f32>>),
}

impl<'a> T<'a> {
    fn of(rows: &'a [Row], lora: Option<(&'a Lora<Factor<'a>>, Carried<'a>)>) -> Self {
        match lora {
            None => Self::None,
            Some((lora, Carried::Made(t))) => Self::Made(lora, t),
            Some((lora, Carried::From(x))) => Self::Making(Making::new(rows, lora, x), OnceLock::new()),
        }
    }

    /// Before W x: see [`Making::help`].
    fn help(&self) {
        if let Self::Making(making, _) = self {
            making.help();
        }
    }

    /// Behind W x.
    fn get(&self) -> Option<(&Lora<Factor<'a>>, &[f32])> {
        match self {
            Self::None => None,
            Self::Made(lora, t) => Some((lora, t)),
            Self::Making(making, t) => Some((making.lora(), t.get_or_init(|| making.t()))),
        }
    }
}

/// Columns as they are computed one after the other.
fn stretches<'a>(columns: Columns<'a>, lora: Option<(&Lora<Factor>, Carried)>) -> Vec<Columns<'a>> {
    match lora {
        Some((lora, _)) => columns.divide(stretch(lora)),
        None => vec![columns],
    }
}

/// What follows W x + b.
struct ProjectEnd<'a> {
    op: &'a Project<'a>,
    lora: Option<(&'a Lora<Factor<'a>>, &'a [f32])>,
    columns: Columns<'a>,
}

impl Work for ProjectEnd<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { op, lora, columns: Columns { start, rows: mut y } } = self;
        if let Some((lora, t)) = lora {
            add_up(simd, lora, op.rows, t, start, &mut y);
        }
        for (line, y) in y.into_iter().enumerate() {
            if let Some(function) = op.activation {
                math::activate(simd, function, y);
            }
            if let Some(residual) = op.residual {
                let residual = &residual[line * op.outputs + start..][..y.len()];
                y.iter_mut().zip(residual).for_each(|(y, r)| *y += r);
            }
        }
    }
}

/// `x` \[rows, inputs\], `y` \[rows, outputs\].
pub fn gate_up(op: &GateUp, x: &[f32], y: &mut [f32]) {
    let x = &Operand::new(x, &op.weights, op.precision);
    let (per, lora) = (block(op.outputs, x, op.weights.len()), &T::of(op.rows, op.lora));
    each(columns(y, op.outputs, per), |columns| {
        lora.help();
        for mut columns in stretches(columns, op.lora) {
            let gate = columns.range();
            let mut up = vec![0.0; gate.len() * op.rows.len()];
            let up: &mut Vec<&mut [f32]> = &mut up.chunks_mut(gate.len().max(1)).collect();
            let ups = op.outputs + gate.start..op.outputs + gate.end;
            let [of_gate, of_up] = &mut [&gate, &ups].map(|outputs| meanwhile(op.rows, op.lora, outputs));
            linear(op.weights[0], op.biases[0], x, columns.start, &mut columns.rows, of_gate);
            linear(op.weights[1], op.biases[1], x, columns.start, up, of_up);
            run(GateUpEnd { op, lora: lora.get(), columns, up });
        }
    });
}

/// What follows G x + b_g and U x + b_u.
struct GateUpEnd<'a, 'b> {
    op: &'a GateUp<'a>,
    lora: Option<(&'a Lora<Factor<'a>>, &'a [f32])>,
    columns: Columns<'a>,
    up: &'a mut [&'b mut [f32]],
}

impl Work for GateUpEnd<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { op, lora, columns: Columns { start, rows: mut gate }, up } = self;
        if let Some((lora, t)) = lora {
            add_up(simd, lora, op.rows, t, start, &mut gate);
            add_up(simd, lora, op.rows, t, op.outputs + start, up);
        }
        for (gate, up) in gate.into_iter().zip(up) {
            math::activate(simd, op.function, gate);
            gate.iter_mut().zip(up.iter()).for_each(|(gate, up)| *gate *= *up);
        }
    }
}

/// What to fetch while W x is computed for some outputs.
fn meanwhile(rows: &[Row], lora: Option<(&Lora<Factor>, Carried)>, outputs: &Range<usize>) -> Meanwhile {
    match (rows, lora) {
        ([row], Some((lora, _))) => Meanwhile::new(lora, row, outputs),
        // A prompt's rows read them so often that only the first time counts.
        _ => Meanwhile::none(),
    }
}

/// y = W x + b for the outputs from `start` on.
fn linear(
    weight: &Weight,
    bias: Option<&[f32]>,
    x: &Operand,
    start: usize,
    y: &mut [&mut [f32]],
    meanwhile: &mut Meanwhile,
) {
    let width = y.first().map_or(0, |y| y.len());
    let mut done = 0;
    while done < width {
        let (stored, row) = weight.locate(start + done);
        let rest = width - done;
        let rows = match stored {
            Stored::F32(values) => floats(values, row, done, x, y, meanwhile),
            Stored::F16(values) => floats(values, row, done, x, y, meanwhile),
            Stored::Bf16(values) => floats(values, row, done, x, y, meanwhile),
            Stored::Panels(panels) => {
                let rows = (panels.rows - row).min(rest);
                if let Some(x) = &x.lines {
                    panel::products(&panels, row..row + rows, x, done, y, meanwhile);
                }
                rows
            }
        };
        if let Some(bias) = bias {
            for y in y.iter_mut() {
                let bias = &bias[start + done..][..rows];
                y[done..][..rows].iter_mut().zip(bias).for_each(|(y, b)| *y += b);
            }
        }
        done += rows;
    }
}

/// The outputs from `done` on that a matrix's rows from `row` on give; returns how many.
fn floats<E: Element>(
    matrix: &[E],
    row: usize,
    done: usize,
    x: &Operand,
    y: &mut [&mut [f32]],
    meanwhile: &mut Meanwhile,
) -> usize {
    let (Some(cols), Some(width)) = (x.floats.first().map(|x| x.len()), y.first().map(|y| y.len())) else {
        return 1;
    };
    let matrix = &matrix[row * cols..];
    let rows = (matrix.len() / cols).min(width - done);
    run(Floats { matrix, cols, rows, x: &x.floats, done, y, meanwhile });
    rows
}

struct Floats<'a, 'b, E> {
    matrix: &'a [E],
    cols: usize,
    rows: usize,
    x: &'a [&'a [f32]],
    done: usize,
    y: &'a mut [&'b mut [f32]],
    meanwhile: &'a mut Meanwhile,
}

impl<E: Element> Work for Floats<'_, '_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { matrix, cols, rows, x, done, y, meanwhile } = self;
        for _ in 0..rows.div_ceil(LANES) {
            meanwhile.turn(simd);
        }
        for (block, x) in x.chunks(LINES).enumerate() {
            products(simd, matrix, cols, rows, cols, x, &mut |line, row, sum| {
                y[block * LINES + line][done + row] = sum;
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use half::f16;
    use wattle_shaders::{FactorType, LayerMask};

    use super::super::lora::{Factors, lora_down};
    use super::*;
    use crate::{Pair, Target};

    fn numbers(count: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 29 + 7) % 64) as f32 / 32.0 - 1.0).collect()
    }

    /// Rows of two adapters and of none.
    fn rows(count: usize) -> Vec<Row> {
        let row = |i: usize| Row {
            slot: i as u32 % 2,
            lora: LayerMask::of(if i % 3 == 2 { 0..0 } else { 1..2 }).words(),
            ..Row::prompt(0, 0, 0)
        };
        (0..count).map(row).collect()
    }

    #[test]
    fn t_is_the_same_wherever_it_is_made() {
        let (cols, outputs) = (1000, 340);
        let stored: Vec<f16> = numbers(outputs * cols).into_iter().map(f16::from_f32).collect();
        for rank in [1, 5, 48] {
            let factors = [FactorType::F16, FactorType::F32].map(|kept| {
                let (a, b) = (numbers(rank * cols), numbers(outputs * rank));
                (Factors::down(&a, kept), Factors::up(&b, rank, kept))
            });
            let pair =
                |slot: usize| Some(Pair { rank, a: factors[slot].0.view(), b: factors[slot].1.view() });
            let target = Target { start: 0, rows: outputs, slots: vec![pair(0), pair(1)] };
            let lora = Lora { layer: 1, cols, rank: 48, part: cols, targets: vec![target] };
            for (lines, threads) in [(1, 1), (1, 3), (4, 2), (8, 4)] {
                let (x, rows) = (numbers(lines * cols), rows(lines));
                let mut t = vec![0.0; lines * lora.t_width()];
                let weight = Weight { cols, order: None, parts: vec![(0, Stored::F16(&stored))] };
                let op = |carried| Project {
                    rows: &rows,
                    weight: &weight,
                    outputs,
                    bias: None,
                    lora: Some((&lora, carried)),
                    activation: None,
                    residual: None,
                    precision: Precision::Exact,
                };
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
                let [mut made, mut beside] = [(); 2].map(|()| vec![f32::NAN; lines * outputs]);
                pool.install(|| {
                    lora_down(&rows, &lora, &x, &mut t);
                    project(&op(Carried::Made(&t)), &x, &mut made);
                    project(&op(Carried::From(&x)), &x, &mut beside);
                });
                assert!(made == beside, "rank {rank}, {lines} lines, {threads} threads");
                assert!(made.iter().all(|y| y.is_finite()));
            }
        }
    }
}
