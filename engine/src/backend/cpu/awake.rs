//! Threads that stay awake during a step.
//!
//! A thread of a pool that finds nothing to do goes to sleep after some microseconds, and to wake it takes tens of them:
//! more than most ops of a step take. Between two ops that several threads share there is mostly one that a single
//! thread does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use wattle_kernels_cpu::fast::help_until;

/// Does `work` on a thread of the current rayon pool, whose other threads wait for parts of it without going to sleep. It
/// does not wait for them at its end: one that has lost its processor comes to know of it later.
pub(super) fn awake<R>(work: impl FnOnce() -> R) -> R {
    let own = rayon::current_thread_index();
    let end = End(Arc::new(AtomicBool::new(false)));
    let ended = Arc::clone(&end.0);
    rayon::spawn_broadcast(move |context| {
        // The own thread comes here when it waits for others, who may wait for what it does next.
        if Some(context.index()) != own {
            help_until(|| ended.load(Ordering::Acquire));
        }
    });
    work()
}

/// Says that work has ended, even if it panics.
struct End(Arc<AtomicBool>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use rayon::prelude::*;

    use super::*;

    #[test]
    fn work_ends_with_its_result_or_panic_on_any_number_of_threads() {
        for threads in [1, 2, 5] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            for round in 0..200_u64 {
                let sum =
                    pool.install(|| awake(|| (0..64_u64).into_par_iter().map(|i| i * round).sum::<u64>()));
                assert_eq!(sum, 2016 * round);
            }
            let panic = catch_unwind(AssertUnwindSafe(|| pool.install(|| awake(|| panic!("on purpose")))));
            assert!(panic.is_err());
            assert_eq!(pool.install(|| awake(|| 3)), 3);
        }
        assert_eq!(rayon::scope(|_| awake(|| 4)), 4);
    }
}
