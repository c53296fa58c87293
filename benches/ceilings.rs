//! What the processor can do at most.

use std::time::Instant;

use wattle_kernels_cpu::fast::peak;

/// Rounds of one timing: some milliseconds.
const ROUNDS: usize = 1 << 20;

/// Multiply-adds per second of `threads` threads that do nothing else, of f32 or of 4-bit codes with 8-bit inputs: the
/// best of three timings.
pub(crate) fn multiply_adds(integers: bool, threads: usize) -> f64 {
    let kernel = if integers { peak::integers } else { peak::floats };
    let time = || {
        let started = Instant::now();
        let total: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..threads).map(|_| scope.spawn(move || kernel(ROUNDS))).collect();
            threads.into_iter().filter_map(|thread| thread.join().ok()).sum()
        });
        total as f64 / started.elapsed().as_secs_f64()
    };
    (0..3).map(|_| time()).fold(0.0, f64::max)
}
