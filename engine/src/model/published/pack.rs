//! Published codes, scales and zero points → panels.

use std::sync::Arc;

use rayon::prelude::*;
use wattle_kernels_cpu::ColumnOrder;

use crate::error::Result;
use crate::model::checkpoint::Checkpoint;
use crate::model::format::{Bits, Offset, PANEL, PanelFormat};
use crate::model::matrix::Matrix;
use crate::model::quantize::{Made, PanelMut};
use crate::threads;

/// What a matrix is made of, wherever its checkpoint keeps it. Rows, inputs and groups are within the matrix.
pub(super) trait Elements: Sync {
    /// The code of a row and an input, from 0 on.
    fn code(&self, row: usize, input: usize) -> u8;

    /// The code that stands for 0.0 in a row and group; not asked for where codes are indices of a table.
    fn zero(&self, row: usize, group: usize) -> u8;

    /// Where among all scales that of a row and group is.
    fn scale(&self, row: usize, group: usize) -> usize;
}

/// A matrix to be made.
pub(super) struct Target<'a> {
    pub from: &'a Checkpoint,
    /// Its module.
    pub module: &'a str,
    pub rows: usize,
    pub cols: usize,
    pub format: PanelFormat,
    /// Of inputs whose groups are not sorted.
    pub order: Option<Arc<ColumnOrder>>,
    /// All scales, in their type.
    pub scales: &'a [u8],
}

impl Target<'_> {
    /// The matrix. Zero points are left out where all of them are in the middle.
    ///
    /// # Errors
    /// Zero points that the format cannot hold (an error about the tensor `zeros`); no memory.
    pub(super) fn affine(mut self, zeros: &str, elements: &impl Elements) -> Result<Matrix> {
        let groups = self.format.groups(self.cols);
        let middle = self.format.bits.middle();
        let all = (0..self.rows).all(|row| (0..groups).all(|group| elements.zero(row, group) == middle));
        self.format.offset = match (all, self.format.bits) {
            (true, _) => Offset::Middle,
            (false, Bits::Four) => Offset::Zero,
            (false, Bits::Eight) => {
                let reason = format!("has zero points other than {middle}; expected none with 8 bits");
                return Err(self.from.error(&format!("{}.{zeros}", self.module), reason));
            }
        };
        self.pack(elements)
    }

    /// The matrix, in the format as it is.
    pub(super) fn pack(self, elements: &impl Elements) -> Result<Matrix> {
        let (module, rows, cols) = (self.module, self.rows, self.cols);
        let no_memory = || self.from.error(module, format!("no memory for panels of [{rows}, {cols}]"));
        let mut made = Made::zeroed(self.format, rows, cols).ok_or_else(no_memory)?;
        let [panel, ..] = self.format.bytes(PANEL, cols).ok_or_else(no_memory)?;
        threads::ready()?;
        made.codes.as_mut().par_chunks_mut(panel.max(1)).enumerate().for_each(|(index, codes)| {
            self.codes(index * PANEL, codes, elements);
        });
        self.groups(&mut made, elements);
        let name = format!("{module}.weight");
        let matrix = made.matrix(&name, rows, cols).ok_or_else(no_memory)?;
        Ok(Matrix { order: self.order.clone(), ..matrix })
    }

    /// The codes of the panel that begins with row `first`.
    fn codes(&self, first: usize, codes: &mut [u8], elements: &impl Elements) {
        // Panels hold 8-bit codes as signed numbers.
        let flipped = if self.format.bits == Bits::Eight { 0x80 } else { 0 };
        let mut panel =
            PanelMut { format: self.format, cols: self.cols, codes, scales: &mut [], offsets: &mut [] };
        for col in 0..self.cols {
            let input = self.order.as_ref().map_or(col, |order| order.inputs()[col] as usize);
            for row in first..self.rows.min(first + PANEL) {
                panel.set_code(row - first, col, elements.code(row, input) ^ flipped);
            }
        }
    }

    /// Scales and zero points.
    fn groups(&self, made: &mut Made, elements: &impl Elements) {
        let (groups, size) = (self.format.groups(self.cols), self.format.scale.size());
        let (scales, offsets) = (made.scales.as_mut(), made.offsets.as_mut());
        for row in 0..self.rows {
            for group in 0..groups {
                let to = (row / PANEL * groups + group) * PANEL + row % PANEL;
                let from = elements.scale(row, group);
                scales[to * size..][..size].copy_from_slice(&self.scales[from * size..][..size]);
                if self.format.offset == Offset::Zero {
                    offsets[to] = elements.zero(row, group);
                }
            }
        }
    }
}
