//! What devices can do at most.

use std::sync::{LazyLock, Mutex, PoisonError};
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
    gpu_peak: Option<f64>,
}

/// What the GPU can do, if there is one.
static GPU: LazyLock<Mutex<Option<gpu::Ceilings>>> = LazyLock::new(|| Mutex::new(device::ceilings()));

fn on_gpu<T>(ask: impl FnOnce(&gpu::Ceilings) -> T) -> Option<T> {
    GPU.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(ask)
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Bytes per second that a backend's device gives now when it does nothing but read so many; NaN where that cannot be
/// measured.
pub(crate) fn read(backend: &str, bytes: u64) -> f64 {
    let rate = match backend {
        "gpu" => on_gpu(|gpu| gpu.read(bytes).ok()).flatten(),
        _ => bandwidth::read(bytes, threads()).ok(),
    };
    rate.unwrap_or(f64::NAN)
}

impl Ceilings {
    pub fn new(lines: &[Line]) -> Self {
        let threads = threads();
        let peaks = [false, true].map(|integers| multiply_adds(integers, threads));
        let gpu = lines.iter().any(|line| line.backend == "gpu");
        let gpu_peak = if gpu { on_gpu(|gpu| gpu.multiply_adds().ok()).flatten() } else { None };
        Self { threads, peaks, gpu_peak }
    }

    /// Multiply-adds per second that a line's device gives.
    pub fn peak(&self, line: &Line) -> f64 {
        match line.backend {
            "gpu" => self.gpu_peak.unwrap_or(f64::NAN),
            _ => self.peaks[usize::from(line.case.quant.is_some())],
        }
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
        if let (Some(peak), Some(name)) = (self.gpu_peak, on_gpu(|gpu| gpu.info().name.clone())) {
            println!("{name}: at most {:.0} GMAC/s in f32", peak / 1e9);
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
