//! How kernels see memory: as f32 elements, whatever they are stored as.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::ColumnOrder;
use crate::panels::Panels;

/// Elements that a plain twin reads.
pub trait Read {
    /// Element `index` as f32.
    fn get(&self, index: usize) -> f32;
}

/// Elements that a plain twin writes.
pub trait Write {
    /// Stores element `index`.
    fn set(&mut self, index: usize, value: f32);
}

impl Read for &[f32] {
    fn get(&self, index: usize) -> f32 {
        self[index]
    }
}

impl Write for &mut [f32] {
    fn set(&mut self, index: usize, value: f32) {
        self[index] = value;
    }
}

/// A slice of elements, or a quantized matrix, as it is stored.
#[derive(Clone, Copy, Debug)]
pub enum Stored<'a> {
    /// IEEE binary32.
    F32(&'a [f32]),
    /// IEEE binary16.
    F16(&'a [f16]),
    /// bfloat16.
    Bf16(&'a [bf16]),
    /// Quantized.
    Panels(Panels<'a>),
}

impl Read for Stored<'_> {
    fn get(&self, index: usize) -> f32 {
        match self {
            Self::F32(values) => values[index],
            Self::F16(values) => values[index].to_f32(),
            Self::Bf16(values) => values[index].to_f32(),
            Self::Panels(panels) => panels.element(index / panels.cols, index % panels.cols),
        }
    }
}

/// A matrix \[rows, cols\] whose rows lie in one or more slices, in order.
#[derive(Clone, Debug)]
pub struct Weight<'a> {
    /// Elements of a row.
    pub cols: usize,
    /// The slices, each with the index of its first row; at least one, each of whole rows.
    pub parts: Vec<(usize, Stored<'a>)>,
    /// Which input each stored column multiplies, where that is another one; only quantized parts have an order.
    pub order: Option<&'a ColumnOrder>,
}

impl<'a> Weight<'a> {
    /// The part that holds row `row`, and the row's index in it.
    pub fn locate(&self, row: usize) -> (Stored<'a>, usize) {
        let index = self.parts.partition_point(|&(first, _)| first <= row).saturating_sub(1);
        let (first, stored) = self.parts[index];
        (stored, row - first)
    }

    /// Reads a row: as [`Read::get`] does, but fast.
    pub fn read_row(&self, row: usize, to: &mut [f32]) {
        let (stored, at) = self.locate(row);
        let elements = at * self.cols..(at + 1) * self.cols;
        match stored {
            Stored::F32(values) => to.copy_from_slice(&values[elements]),
            Stored::F16(values) => values[elements].convert_to_f32_slice(to),
            Stored::Bf16(values) => values[elements].convert_to_f32_slice(to),
            Stored::Panels(panels) if self.order.is_none() => panels.read_row(at, to),
            Stored::Panels(_) => {
                to.iter_mut().enumerate().for_each(|(col, to)| *to = self.get(row * self.cols + col));
            }
        }
    }
}

impl Read for Weight<'_> {
    /// The element of a row and an input.
    fn get(&self, index: usize) -> f32 {
        let (stored, row) = self.locate(index / self.cols);
        let input = index % self.cols;
        stored.get(row * self.cols + self.order.map_or(input, |order| order.column(input)))
    }
}
