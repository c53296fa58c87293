//! What there is to run on.

use serde::Serialize;

/// The processor.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Cpu {
    /// As the system names it.
    pub name: String,
    /// Instruction set.
    pub arch: &'static str,
    /// Vector extensions that were found.
    pub simd: Vec<&'static str>,
    /// Cores that this process may use.
    pub cores: usize,
}

impl Cpu {
    /// This machine's.
    pub fn find() -> Self {
        Self {
            name: cpu_name().unwrap_or_else(|| "unknown".to_owned()),
            arch: std::env::consts::ARCH,
            simd: simd(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }
}

/// The model name of the first core (Linux).
fn cpu_name() -> Option<String> {
    let info = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = info.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// The extensions that matter to kernels, of those that this processor has.
#[cfg(target_arch = "x86_64")]
fn simd() -> Vec<&'static str> {
    let found = [
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("f16c", is_x86_feature_detected!("f16c")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
        ("avx512vnni", is_x86_feature_detected!("avx512vnni")),
        ("avx512bf16", is_x86_feature_detected!("avx512bf16")),
    ];
    found.into_iter().filter(|(_, there)| *there).map(|(name, _)| name).collect()
}

/// The extensions that matter to kernels, of those that this processor has.
#[cfg(target_arch = "aarch64")]
fn simd() -> Vec<&'static str> {
    let found = [
        ("neon", std::arch::is_aarch64_feature_detected!("neon")),
        ("dotprod", std::arch::is_aarch64_feature_detected!("dotprod")),
    ];
    found.into_iter().filter(|(_, there)| *there).map(|(name, _)| name).collect()
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn simd() -> Vec<&'static str> {
    Vec::new()
}

/// A GPU, or a program that pretends to be one.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Gpu {
    pub name: String,
    pub driver: String,
    /// On the PCI bus; empty where that is not known.
    pub pci: String,
    /// `vulkan`, `metal` or `dx12`.
    pub api: &'static str,
    /// A program on the CPU.
    pub software: bool,
    /// Smallest and largest subgroup; `None` without subgroup operations.
    pub subgroups: Option<(u32, u32)>,
    pub f16: bool,
    /// Whether it has cooperative matrices that wattle's kernels can use, once they passed a test on it.
    pub cooperative: bool,
    /// Whether ops can be timed.
    pub timestamps: bool,
    /// The largest storage binding \[bytes\].
    pub max_binding: u64,
    /// The largest buffer \[bytes\].
    pub max_buffer: u64,
    /// Workgroups per dimension of a dispatch.
    pub max_workgroups: u32,
}

/// What measures the limits of the GPU of this name; of the first one without a name.
#[cfg(feature = "gpu")]
pub(crate) fn ceilings(device: Option<&str>) -> wattle_engine::Result<wattle_engine::backend::gpu::Ceilings> {
    use wattle_engine::backend::Capacity;
    use wattle_engine::backend::gpu::{Ceilings, GpuOptions};
    let capacity = Capacity { sequences: 1, context: 1, pages: 1, rows: 1, samples: 1 };
    let device = device.map(str::to_owned);
    Ceilings::open(&GpuOptions { allow_software: true, device, ..GpuOptions::new(capacity) })
}

/// All GPUs that were found; none in a build without the feature `gpu`.
#[cfg(feature = "gpu")]
pub(crate) fn gpus() -> Vec<Gpu> {
    let gpu = |info: wattle_engine::backend::gpu::DeviceInfo| Gpu {
        name: info.name,
        driver: info.driver,
        pci: info.pci,
        api: info.api,
        software: info.software,
        subgroups: info.subgroups,
        f16: info.f16,
        cooperative: info.cooperative,
        timestamps: info.timestamps,
        max_binding: info.binding,
        max_buffer: info.buffer,
        max_workgroups: info.workgroups,
    };
    wattle_engine::backend::gpu::devices().into_iter().map(gpu).collect()
}

/// All GPUs that were found; none in a build without the feature `gpu`.
#[cfg(not(feature = "gpu"))]
pub(crate) fn gpus() -> Vec<Gpu> {
    Vec::new()
}
