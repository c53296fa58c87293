//! Work over the threads of the current rayon pool.

use std::hint;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::{Scope, Yield};

/// Multiply-adds below which a hand-off to another thread costs more than it saves.
const WORTH_IT: usize = 1 << 14;

/// Into how many parts to divide `work` multiply-adds: 1 when threads are not worth it, else several per thread, so
/// that a thread which is held up does not hold up the others.
pub(super) fn parts(work: usize) -> usize {
    let threads = rayon::current_num_threads();
    if threads == 1 || work < WORTH_IT { 1 } else { (threads * 4).min(work / (WORTH_IT / 4)) }
}

/// Does every task, on several threads if there are several tasks: halves of what is left go to threads that have nothing
/// to do, so that each has one long stretch.
pub(super) fn each<T: Send>(tasks: Vec<T>, work: impl Fn(T) + Sync + Send) {
    if tasks.len() < 2 || rayon::current_num_threads() == 1 {
        return tasks.into_iter().for_each(work);
    }
    let left = AtomicUsize::new(tasks.len());
    let work = |task| {
        let _ended = Ended(&left);
        work(task);
    };
    rayon::scope(|scope| {
        halves(scope, tasks, &work);
        help_until(|| left.load(Ordering::Acquire) == 0);
    });
}

/// Says that a task has ended, even if it panics.
struct Ended<'a>(&'a AtomicUsize);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Release);
    }
}

/// Offers the second half of the tasks to other threads, then that of the first half, …, and does the first one.
fn halves<'a, T: Send + 'a>(scope: &Scope<'a>, mut tasks: Vec<T>, work: &'a (impl Fn(T) + Sync)) {
    while tasks.len() > 1 {
        let second = tasks.split_off(tasks.len().div_ceil(2));
        scope.spawn(move |scope| halves(scope, second, work));
    }
    tasks.into_iter().for_each(work);
}

/// Times that a thread looks for work in vain before it may sleep after all: about 0.1 ms. It does not offer its processor
/// to others before: where these are busy, it would not have it back in time.
const EAGER: u32 = 1 << 11;

/// Does what other threads of the current rayon pool offer until `ended` says so, or until there was nothing for long. A
/// thread that rayon sends to sleep because it finds nothing to do is awake only tens of microseconds after there is
/// something: more than most ops of a step take.
pub fn help_until(ended: impl Fn() -> bool) {
    let mut idle = 0;
    while idle < EAGER && !ended() {
        if rayon::yield_now() == Some(Yield::Executed) {
            idle = 0;
        } else {
            idle += 1;
            hint::spin_loop();
        }
    }
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

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    #[test]
    fn every_task_is_done_once_on_any_number_of_threads() {
        for threads in [1, 2, 5] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
            for count in [0, 1, 2, 3, 7, 64] {
                let times: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
                let work = |task: usize| {
                    times[task].fetch_add(1, Ordering::Relaxed);
                };
                pool.install(|| each((0..count).collect(), work));
                let times: Vec<usize> = times.into_iter().map(AtomicUsize::into_inner).collect();
                assert_eq!(times, vec![1; count], "{threads} threads");
            }
        }
    }

    #[test]
    fn a_panic_comes_back_after_the_other_tasks() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().expect("threads");
        for bad in [0, 5, 15] {
            let done = AtomicUsize::new(0);
            let work = |task| {
                assert!(task != bad, "on purpose");
                done.fetch_add(1, Ordering::Relaxed);
            };
            let ended = catch_unwind(AssertUnwindSafe(|| pool.install(|| each((0..16).collect(), work))));
            assert!(ended.is_err());
            assert_eq!(done.into_inner(), 15);
        }
    }
}
