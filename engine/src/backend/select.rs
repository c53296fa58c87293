//! Options → a backend.

use super::cpu::{CpuBackend, CpuOptions, Mode};
use super::{Backend, Capacity};
use crate::error::Result;
use crate::options::{BackendChoice, CpuKernels, EngineOptions};

/// Makes the backend that the options ask for.
///
/// # Errors
/// [`Error::Device`](crate::Error::Device) when there is no such device, or it has no room.
pub fn create(options: &EngineOptions, capacity: Capacity) -> Result<Box<dyn Backend>> {
    match options.backend {
        BackendChoice::Cpu => cpu(options, capacity),
        BackendChoice::Gpu => gpu(options, capacity, true),
        // A software GPU is slower than the CPU kernels on the same cores.
        BackendChoice::Auto => gpu(options, capacity, false).or_else(|reason| {
            tracing::debug!(%reason, "no real GPU: the CPU runs the plan");
            cpu(options, capacity)
        }),
    }
}

fn cpu(options: &EngineOptions, capacity: Capacity) -> Result<Box<dyn Backend>> {
    let mode = match options.cpu_kernels {
        CpuKernels::Fast => Mode::Fast,
        CpuKernels::Plain => Mode::Plain,
    };
    let EngineOptions { precision, threads, limits, .. } = *options;
    let options = CpuOptions { mode, precision, threads, limits, capacity };
    Ok(Box::new(CpuBackend::new(options)?))
}

#[cfg(feature = "gpu")]
fn gpu(options: &EngineOptions, capacity: Capacity, allow_software: bool) -> Result<Box<dyn Backend>> {
    use super::gpu::{GpuBackend, GpuOptions};
    let EngineOptions { limits, checked, precision, ref tuning, .. } = *options;
    let tuning = tuning.clone();
    let asked =
        GpuOptions { limits, allow_software, checked, precision, tuning, ..GpuOptions::new(capacity) };
    Ok(Box::new(GpuBackend::new(&asked)?))
}

#[cfg(not(feature = "gpu"))]
fn gpu(_options: &EngineOptions, _capacity: Capacity, _allow_software: bool) -> Result<Box<dyn Backend>> {
    Err(crate::Error::device("gpu", "this build has no GPU backend"))
}
