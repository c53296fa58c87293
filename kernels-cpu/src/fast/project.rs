//! W x with its epilogues.

use wattle_shaders::Row;

use super::lora::add_up;
use super::math;
use super::simd::{Element, Simd, Work, run};
use super::threads::{Columns, columns, each, parts};
use super::tile::products;
use crate::activate::Function;
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
    pub lora: Option<(&'a Lora<&'a [f32]>, &'a [f32])>,
    /// Applied to the sum.
    pub activation: Option<Function>,
    /// r.
    pub residual: Option<&'a [f32]>,
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
    pub lora: Option<(&'a Lora<&'a [f32]>, &'a [f32])>,
}

/// Lines of x that are multiplied with a block of the matrix while both stay in the nearest cache.
const LINES: usize = 16;

/// Elements of a matrix block: half of a usual second-level cache, if they are f32.
const BLOCK: usize = 1 << 16;

/// Outputs of a block: as many as threads and cache want, in fours.
fn block(outputs: usize, inputs: usize, work: usize) -> usize {
    let per = outputs.div_ceil(parts(work)).min((BLOCK / inputs.max(1)).max(4));
    per.next_multiple_of(4)
}

/// `x` \[rows, inputs\], `y` \[rows, outputs\].
pub fn project(op: &Project, x: &[f32], y: &mut [f32]) {
    let inputs = op.weight.cols;
    let per = block(op.outputs, inputs, op.rows.len() * inputs * op.outputs);
    each(columns(y, op.outputs, per), |columns| run(ProjectBlock { op, x, columns }));
}

struct ProjectBlock<'a> {
    op: &'a Project<'a>,
    x: &'a [f32],
    columns: Columns<'a>,
}

impl Work for ProjectBlock<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let op = self.op;
        let start = self.columns.start;
        linear(simd, op.weight, op.bias, self.x, start, &mut self.columns.rows);
        for (line, y) in self.columns.rows.iter_mut().enumerate() {
            if let Some((lora, t)) = op.lora {
                add_up(simd, lora, &op.rows[line], line, t, start, y);
            }
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
    let inputs = op.weights[0].cols;
    let per = block(op.outputs, inputs, 2 * op.rows.len() * inputs * op.outputs);
    each(columns(y, op.outputs, per), |columns| run(GateUpBlock { op, x, columns }));
}

struct GateUpBlock<'a> {
    op: &'a GateUp<'a>,
    x: &'a [f32],
    columns: Columns<'a>,
}

impl Work for GateUpBlock<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let op = self.op;
        let (start, width) = (self.columns.start, self.columns.rows.first().map_or(0, |y| y.len()));
        let mut up = vec![0.0; width * op.rows.len()];
        let mut up: Vec<&mut [f32]> = up.chunks_mut(width.max(1)).collect();
        linear(simd, op.weights[0], op.biases[0], self.x, start, &mut self.columns.rows);
        linear(simd, op.weights[1], op.biases[1], self.x, start, &mut up);
        for (line, (gate, up)) in self.columns.rows.iter_mut().zip(up).enumerate() {
            if let Some((lora, t)) = op.lora {
                add_up(simd, lora, &op.rows[line], line, t, start, gate);
                add_up(simd, lora, &op.rows[line], line, t, op.outputs + start, up);
            }
            math::activate(simd, op.function, gate);
            gate.iter_mut().zip(up).for_each(|(gate, up)| *gate *= *up);
        }
    }
}

/// y = W x + b for the outputs from `start` on.
#[inline(always)]
fn linear<S: Simd>(
    simd: S,
    weight: &Weight,
    bias: Option<&[f32]>,
    x: &[f32],
    start: usize,
    y: &mut [&mut [f32]],
) {
    let x: Vec<&[f32]> = x.chunks(weight.cols).collect();
    let width = y.first().map_or(0, |y| y.len());
    let mut done = 0;
    while done < width {
        let (stored, row) = weight.locate(start + done);
        let from = row * weight.cols;
        done += match stored {
            Stored::F32(values) => part(simd, &values[from..], bias, start, done, &x, y),
            Stored::F16(values) => part(simd, &values[from..], bias, start, done, &x, y),
            Stored::Bf16(values) => part(simd, &values[from..], bias, start, done, &x, y),
        };
    }
}

/// The outputs from `done` on that `matrix`, the rest of a part, has rows for; returns how many.
#[inline(always)]
fn part<S: Simd, E: Element>(
    simd: S,
    matrix: &[E],
    bias: Option<&[f32]>,
    start: usize,
    done: usize,
    x: &[&[f32]],
    y: &mut [&mut [f32]],
) -> usize {
    let (Some(cols), Some(width)) = (x.first().map(|x| x.len()), y.first().map(|y| y.len())) else {
        return 1;
    };
    let rows = (matrix.len() / cols).min(width - done);
    for (block, x) in x.chunks(LINES).enumerate() {
        products(simd, matrix, cols, rows, cols, x, &mut |line, row, sum| {
            let bias = bias.map_or(0.0, |bias| bias[start + done + row]);
            y[block * LINES + line][done + row] = sum + bias;
        });
    }
    rows
}
