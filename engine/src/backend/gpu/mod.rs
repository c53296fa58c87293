//! The GPU backend: WGSL through wgpu. The only place that names wgpu.
