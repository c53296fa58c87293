//! Work over the threads of the current rayon pool.

use std::ops::Range;

use rayon::prelude::*;

/// Multiply-adds below which a hand-off to another thread costs more than it saves.
const WORTH_IT: usize = 1 << 16;

/// Into how many parts to divide `work` multiply-adds: 1 when threads are not worth it, else several per thread, so
/// that a thread which is held up does not hold up the others.
pub(super) fn parts(work: usize) -> usize {
    let threads = rayon::current_num_threads();
    if threads == 1 || work < WORTH_IT { 1 } else { (threads * 4).min(work / (WORTH_IT / 4)) }
}

/// Does every task, on several threads if there are several tasks.
pub(super) fn each<T: Send>(tasks: Vec<T>, work: impl Fn(T) + Sync + Send) {
    if tasks.len() < 2 {
        return tasks.into_iter().for_each(work);
    }
    tasks.into_par_iter().with_max_len(1).for_each(work);
}

/// Does `work` on runs of lines of `y` (with the index of the first), a line being `width` elements.
pub(super) fn lines<T: Send>(
    y: &mut [T],
    width: usize,
    cost: usize,
    work: impl Fn(usize, &mut [T]) + Sync + Send,
) {
    let per = (y.len() / width.max(1)).div_ceil(parts(cost)).max(1);
    let tasks: Vec<_> = y.chunks_mut(per * width.max(1)).enumerate().collect();
    each(tasks, |(index, lines)| work(index * per, lines));
}

/// The columns `start..start + width` of some rows of a matrix.
pub(super) struct Columns<'a> {
    pub start: usize,
    /// One slice per row.
    pub rows: Vec<&'a mut [f32]>,
}

impl<'a> Columns<'a> {
    /// The columns' indices.
    pub fn range(&self) -> Range<usize> {
        self.start..self.start + self.rows.first().map_or(0, |row| row.len())
    }

    /// Divides them into blocks of `per` columns.
    pub fn divide(self, per: usize) -> Vec<Self> {
        let range = self.range();
        let block = |start| Self { start, rows: Vec::with_capacity(self.rows.len()) };
        let mut blocks: Vec<_> = range.step_by(per).map(block).collect();
        for row in self.rows {
            for (block, part) in blocks.iter_mut().zip(row.chunks_mut(per)) {
                block.rows.push(part);
            }
        }
        blocks
    }
}

/// Divides `y` (rows of `width` elements) into blocks of `per` columns.
pub(super) fn columns(y: &mut [f32], width: usize, per: usize) -> Vec<Columns<'_>> {
    Columns { start: 0, rows: y.chunks_mut(width).collect() }.divide(per)
}
