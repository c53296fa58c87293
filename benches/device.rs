//! Where kernels are timed.

use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use wattle_engine::backend::gpu::{Ceilings, GpuBackend, GpuOptions};
use wattle_engine::backend::{self, Backend, Capacity};
use wattle_engine::{BackendChoice, EngineOptions, Precision};

/// A kind of device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Cpu,
    Gpu,
}

impl Kind {
    /// As backends call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Gpu => "gpu",
        }
    }

    /// What plans are made for.
    pub fn choice(self) -> BackendChoice {
        match self {
            Self::Cpu => BackendChoice::Cpu,
            Self::Gpu => BackendChoice::Gpu,
        }
    }

    /// Whether there is such a device, with a clock.
    pub fn is_there(self) -> bool {
        self == Self::Cpu || gpu(Precision::Exact).is_some()
    }
}

/// Real GPUs only.
fn options(precision: Precision) -> GpuOptions {
    let capacity = Capacity { sequences: 1, context: 1, pages: 1, rows: 1, samples: 1 };
    GpuOptions { precision, ..GpuOptions::new(capacity) }
}

type Gpu = Mutex<Option<GpuBackend>>;

/// The GPU in exact and in fast precision, each opened once: all benches share its pipelines.
static GPUS: [LazyLock<Gpu>; 2] =
    [LazyLock::new(|| open(Precision::Exact)), LazyLock::new(|| open(Precision::Fast))];

fn open(precision: Precision) -> Gpu {
    let gpu = GpuBackend::new(&options(precision)).ok();
    Mutex::new(gpu.filter(|gpu| gpu.info().timestamps))
}

fn gpu(precision: Precision) -> MutexGuard<'static, Option<GpuBackend>> {
    let [exact, fast] = &GPUS;
    let gpu = if precision == Precision::Fast { fast } else { exact };
    gpu.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A backend of its own; `None` where there is no such device, or a GPU has no clock.
pub(crate) fn backend(kind: Kind, precision: Precision, capacity: Capacity) -> Option<Box<dyn Backend>> {
    match kind {
        Kind::Cpu => {
            let options =
                EngineOptions { backend: BackendChoice::Cpu, precision, ..EngineOptions::default() };
            backend::create(&options, capacity).ok()
        }
        Kind::Gpu => Some(Box::new(gpu(precision).as_ref()?.sibling(capacity).ok()?)),
    }
}

/// What the GPU can do at most, if there is one.
pub(crate) fn ceilings() -> Option<Ceilings> {
    Ceilings::open(&options(Precision::Exact)).ok()
}
