//! Matrices that lie together.

use std::sync::Arc;

use super::aligned::AlignedBytes;
use super::matrix::{Bytes, Matrix, Part};

/// Where each array begins: at a cache line.
const LINE: usize = 64;

/// Moves matrices into one run of memory, in their order: first all elements or codes, then all scales and offsets.
///
/// What reads one after the other has the next one's begin fetched when it ends; and most matrices are too small for huge
/// pages of their own. Where there is no memory for the run, they stay where they are.
pub(super) fn gather(matrices: &mut [&mut Arc<Matrix>]) {
    let len = |bytes: &Bytes| bytes.as_ref().len().next_multiple_of(LINE);
    let total = matrices.iter().flat_map(|matrix| &matrix.parts).flat_map(arrays).map(len).sum();
    let Some(mut run) = AlignedBytes::zeroed(total) else { return };
    let mut end = 0;
    let mut place = |bytes: &Bytes| {
        let from = bytes.as_ref();
        run.as_mut()[end..][..from.len()].copy_from_slice(from);
        end += len(bytes);
        (end - len(bytes), from.len())
    };
    let parts = || matrices.iter().flat_map(|matrix| &matrix.parts);
    let data: Vec<_> = parts().map(|part| place(&part.data)).collect();
    let scales: Vec<_> =
        parts().map(|part| part.scales.as_ref().map(|both| both.each_ref().map(&mut place))).collect();
    let run = Bytes::new(run);
    let slice = |(start, len)| run.slice(start, len);
    let mut places = data.into_iter().zip(scales);
    for matrix in matrices {
        let moved = matrix.parts.iter().map(|part| {
            let (data, scales) = places.next()?;
            let scales = match scales {
                Some([scales, offsets]) => Some([slice(scales)?, slice(offsets)?]),
                None => None,
            };
            Some(Part { rows: part.rows, data: slice(data)?, scales })
        });
        if let Some(parts) = moved.collect() {
            **matrix = Arc::new(Matrix { parts, ..Matrix::clone(matrix) });
        }
    }
}

fn arrays(part: &Part) -> impl Iterator<Item = &Bytes> {
    std::iter::once(&part.data).chain(part.scales.iter().flatten())
}

#[cfg(test)]
mod tests {
    use super::super::format::Q4_1;
    use super::super::quantize::quantize;
    use super::super::view::weight;
    use super::*;

    #[test]
    fn elements_stay_and_lie_one_after_the_other() {
        let matrix = |rows: usize, cols: usize| {
            let values: Vec<f32> = (0..rows * cols).map(|i| (i * 37 % 101) as f32 - 50.0).collect();
            Arc::new(Matrix::from_f32(format!("{rows}"), rows, cols, &values).unwrap())
        };
        let dense = matrix(3, 50);
        let stacked = Arc::new(Matrix::stack(&[&matrix(17, 70), &matrix(5, 70)]).unwrap());
        let mut moved = [dense, quantize(&matrix(40, 70), Q4_1).unwrap(), stacked];
        let before = moved.clone();
        gather(&mut moved.each_mut());
        let mut end = None;
        for (moved, before) in moved.iter().zip(&before) {
            assert_eq!((moved.rows, &moved.name, moved.format), (before.rows, &before.name, before.format));
            let read = |matrix: &Matrix| {
                let mut rows = vec![vec![f32::NAN; matrix.cols]; matrix.rows];
                let stored = weight(matrix).unwrap();
                rows.iter_mut().enumerate().for_each(|(row, values)| stored.read_row(row, values));
                rows
            };
            assert_eq!(read(moved), read(before));
            for part in &moved.parts {
                let range = part.data.as_ref().as_ptr_range();
                assert!(end.is_none_or(|end: usize| range.start as usize == end.next_multiple_of(LINE)));
                end = Some(range.end as usize);
            }
        }
    }
}
