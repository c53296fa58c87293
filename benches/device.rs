//! Where kernels are timed.

use std::sync::{LazyLock, Mutex, PoisonError};

use wattle_engine::backend::gpu::{Ceilings, GpuBackend, GpuOptions};
use wattle_engine::backend::{self, Backend, Capacity, Limits};
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
        self == Self::Cpu || GPU.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }
}

/// Real GPUs only.
fn options() -> GpuOptions {
    let capacity = Capacity { sequences: 1, context: 1, rows: 1, samples: 1 };
    GpuOptions { limits: Limits::default(), capacity, allow_software: false, device: None, checked: false }
}

/// The GPU, opened once: all benches share its pipelines.
static GPU: LazyLock<Mutex<Option<GpuBackend>>> = LazyLock::new(|| {
    let gpu = GpuBackend::new(&options()).ok();
    Mutex::new(gpu.filter(|gpu| gpu.info().timestamps))
});

/// A backend of its own; `None` where there is no such device, or a GPU has no clock.
pub(crate) fn backend(kind: Kind, precision: Precision, capacity: Capacity) -> Option<Box<dyn Backend>> {
    match kind {
        Kind::Cpu => {
            let options =
                EngineOptions { backend: BackendChoice::Cpu, precision, ..EngineOptions::default() };
            backend::create(&options, capacity).ok()
        }
        Kind::Gpu => {
            let gpu = GPU.lock().unwrap_or_else(PoisonError::into_inner);
            Some(Box::new(gpu.as_ref()?.sibling(capacity).ok()?))
        }
    }
}

/// What the GPU can do at most, if there is one.
pub(crate) fn ceilings() -> Option<Ceilings> {
    Ceilings::open(&options()).ok()
}
