//! Consecutive rows of a matrix: the parts of a fused projection.

use wattle_kernels_cpu::Read;

use super::aligned::AlignedBytes;
use super::format::{Format, PANEL};
use super::matrix::{Bytes, Matrix, Part};
use super::view::weight;
use crate::error::{Error, Result};

/// Codes of a row of a panel that lie side by side \[bytes\].
const WORD: usize = 4;

impl Matrix {
    /// The elements of a row as f32, one for each input.
    ///
    /// # Errors
    /// [`Error::Value`] where there is no such row, or its elements are not aligned.
    pub fn row(&self, row: usize) -> Result<Vec<f32>> {
        if row >= self.rows {
            return Err(Error::value(&self.name, format!("has no row {row}; it has {}", self.rows)));
        }
        let weight = weight(self)?;
        Ok((row * self.cols..(row + 1) * self.cols).map(|index| weight.get(index)).collect())
    }

    /// Rows `start..start + rows` of a matrix of one part, on the same bytes; those of a quantized one are copied
    /// where they do not begin with a panel. `None` where it has other parts or no such rows, or where there is no
    /// memory for the copy.
    pub fn row_range(&self, start: usize, rows: usize) -> Option<Self> {
        let [part] = self.parts.as_slice() else { return None };
        start.checked_add(rows).filter(|&end| end <= self.rows)?;
        let part = match (self.format, &part.scales) {
            (Format::Dense(dtype), _) => {
                let stride = self.cols * dtype.size();
                Part { rows, data: part.data.slice(start * stride, rows * stride)?, scales: None }
            }
            (Format::Panels(format), Some([scales, offsets])) => {
                let words = format.bytes(PANEL, self.cols)?[0] / (PANEL * WORD);
                let groups = format.groups(self.cols);
                let cut = |array: &Bytes, count, size| rows_of_panels(array, [count, size], start, rows);
                let scales =
                    [cut(scales, groups, format.scale.size())?, cut(offsets, groups, format.offset.size())?];
                Part { rows, data: cut(&part.data, words, WORD)?, scales: Some(scales) }
            }
            (Format::Panels(_), None) => return None,
        };
        Some(Self { rows, parts: vec![part], ..self.clone() })
    }
}

/// Rows of an array \[panels, count, 16\] of elements of `size` bytes, in panels of their own.
fn rows_of_panels(array: &Bytes, [count, size]: [usize; 2], start: usize, rows: usize) -> Option<Bytes> {
    let (panel, panels) = (count * PANEL * size, rows.div_ceil(PANEL));
    if start.is_multiple_of(PANEL) {
        return array.slice(start / PANEL * panel, panels * panel);
    }
    let mut copy = AlignedBytes::zeroed(panels * panel)?;
    let (to, from) = (copy.as_mut(), array.as_ref());
    for row in 0..rows {
        for index in 0..count {
            let at = |row: usize| ((row / PANEL * count + index) * PANEL + row % PANEL) * size;
            to[at(row)..][..size].copy_from_slice(from.get(at(start + row)..)?.get(..size)?);
        }
    }
    Some(Bytes::new(copy))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::format::{INT4, INT8, PanelFormat, Q4_1, Q8_0};
    use super::super::quantize::quantize;
    use super::*;

    fn elements(matrix: &Matrix) -> Vec<f32> {
        (0..matrix.rows).flat_map(|row| matrix.row(row).unwrap()).collect()
    }

    #[test]
    fn rows_of_a_quantized_matrix_are_its_rows() {
        let (rows, cols) = (70, 45);
        let values: Vec<f32> = (0..rows * cols).map(|i| ((i * 37 % 101) as f32 - 50.0) / 7.0).collect();
        let dense = Arc::new(Matrix::from_f32("m", rows, cols, &values).unwrap());
        for format in [INT4, INT8, Q4_1, Q8_0] as [PanelFormat; 4] {
            let whole = quantize(&dense, format).unwrap();
            let expected = elements(&whole);
            for (start, count) in [(0, 70), (16, 30), (32, 16), (5, 17), (17, 53), (69, 1), (64, 6)] {
                let part = whole.row_range(start, count).unwrap();
                assert!(part.format.fits(&part.parts[0], cols), "{format:?} {start} {count}");
                assert_eq!(
                    elements(&part),
                    expected[start * cols..][..count * cols],
                    "{format:?} {start} {count}"
                );
            }
            assert!(whole.row_range(60, 11).is_none() && whole.row_range(usize::MAX, 2).is_none());
        }
    }
}
