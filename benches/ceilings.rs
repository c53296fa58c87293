//! What devices can do at most.

use std::collections::BTreeMap;
use std::time::Instant;

use wattle::bandwidth;
use wattle_engine::backend::gpu;
use wattle_kernels_cpu::fast::peak;

use crate::device;
use crate::report::Line;

/// Rounds of one timing: some milliseconds.
const ROUNDS: usize = 1 << 20;

/// What devices can do at most, measured when it is asked for.
pub(crate) struct Ceilings {
    threads: usize,
    /// Multiply-adds of the processor in f32, and of codes.
    peaks: [f64; 2],
    gpu: Option<gpu::Ceilings>,
    gpu_peak: f64,
    /// By device and bytes.
    reads: BTreeMap<(&'static str, u64), f64>,
}

impl Ceilings {
    pub fn new(lines: &[Line]) -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let peaks = [false, true].map(|integers| multiply_adds(integers, threads));
        let gpu = if lines.iter().any(|line| line.backend == "gpu") { device::ceilings() } else { None };
        let gpu_peak = gpu.as_ref().and_then(|gpu| gpu.multiply_adds().ok()).unwrap_or(f64::NAN);
        Self { threads, peaks, gpu, gpu_peak, reads: BTreeMap::new() }
    }

    /// Bytes per second, and multiply-adds per second, that a line's device gives for as many bytes.
    pub fn of(&mut self, line: &Line) -> [f64; 2] {
        let (bytes, threads, gpu) = (line.cost.dram_bytes(), self.threads, self.gpu.as_ref());
        let on_gpu = line.backend == "gpu";
        let read = self.reads.entry((line.backend, bytes)).or_insert_with(|| {
            let rate = if on_gpu {
                gpu.and_then(|gpu| gpu.read(bytes).ok())
            } else {
                bandwidth::read(bytes, threads).ok()
            };
            rate.unwrap_or(f64::NAN)
        });
        let peak = if on_gpu { self.gpu_peak } else { self.peaks[usize::from(line.case.quant.is_some())] };
        [*read, peak]
    }

    /// Prints what shares are of.
    pub fn print(&self) {
        println!(
            "\n{} threads, {}: at most {:.0} GMAC/s in f32, {:.0} in integers",
            self.threads,
            wattle_kernels_cpu::fast::instruction_set(),
            self.peaks[0] / 1e9,
            self.peaks[1] / 1e9
        );
        if let Some(gpu) = &self.gpu {
            println!("{}: at most {:.0} GMAC/s in f32", gpu.info().name, self.gpu_peak / 1e9);
        }
    }
}

/// Multiply-adds per second of `threads` threads that do nothing else, of f32 or of 4-bit codes with 8-bit inputs: the
/// best of three timings.
fn multiply_adds(integers: bool, threads: usize) -> f64 {
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
