//! Fresh backends for kernel cases: on a GPU all of them share the device and its pipelines.

#[cfg(feature = "gpu")]
use wattle_engine::BackendChoice;
use wattle_engine::backend::{self, Backend, Capacity, Limits};
use wattle_engine::{EngineOptions, Result};

/// Makes backends with guards.
pub(crate) struct Fresh {
    options: EngineOptions,
    #[cfg(feature = "gpu")]
    gpu: Option<backend::gpu::GpuBackend>,
}

impl Fresh {
    /// For the backend that the options choose.
    ///
    /// # Errors
    /// [`wattle_engine::Error::Device`] when there is no such device.
    pub fn open(options: EngineOptions) -> Result<Self> {
        let options = EngineOptions { limits: Limits { guards: true, ..options.limits }, ..options };
        #[cfg(feature = "gpu")]
        let gpu = match options.backend {
            BackendChoice::Gpu => {
                let EngineOptions { limits, checked, .. } = options;
                let capacity = Capacity { sequences: 1, context: 1, rows: 1, samples: 1 };
                let options = backend::gpu::GpuOptions {
                    limits,
                    capacity,
                    allow_software: true,
                    device: None,
                    checked,
                };
                Some(backend::gpu::GpuBackend::new(&options)?)
            }
            BackendChoice::Auto | BackendChoice::Cpu => None,
        };
        Ok(Self {
            options,
            #[cfg(feature = "gpu")]
            gpu,
        })
    }

    /// A backend that nothing was done with.
    ///
    /// # Errors
    /// [`wattle_engine::Error::Device`] when the device has no room.
    pub fn backend(&self, capacity: Capacity) -> Result<Box<dyn Backend>> {
        #[cfg(feature = "gpu")]
        if let Some(gpu) = &self.gpu {
            return Ok(Box::new(gpu.sibling(capacity)?));
        }
        backend::create(&self.options, capacity)
    }
}
