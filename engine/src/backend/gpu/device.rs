//! Adapters and the opened device. Every failure of a device becomes an [`Error::Device`].

use std::cmp::Reverse;
use std::sync::{Arc, Mutex, PoisonError, mpsc};

use super::GpuOptions;
use super::pipelines::Pipelines;
use crate::backend::Limits;
use crate::error::{Error, Result};

/// An adapter, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// The adapter's name.
    pub name: String,
    /// The driver and its version.
    pub driver: String,
    /// Where it sits on the PCI bus, such as `0000:01:00.0`; empty where that is not known.
    pub pci: String,
    /// The API: `vulkan`, `metal` or `dx12`.
    pub api: &'static str,
    /// Whether the adapter is a program on the CPU.
    pub software: bool,
    /// Smallest and largest subgroup, if the adapter has subgroup operations.
    pub subgroups: Option<(u32, u32)>,
    /// Whether shaders may use f16.
    pub f16: bool,
    /// Whether ops can be timed.
    pub timestamps: bool,
    /// The largest storage binding \[bytes\].
    pub binding: u64,
    /// The largest buffer \[bytes\].
    pub buffer: u64,
    /// Workgroups per dimension of a dispatch.
    pub workgroups: u32,
}

impl DeviceInfo {
    fn of(adapter: &wgpu::Adapter) -> Self {
        let (info, features, limits) = (adapter.get_info(), adapter.features(), adapter.limits());
        let subgroups = features.contains(wgpu::Features::SUBGROUP);
        Self {
            driver: format!("{} {}", info.driver, info.driver_info).trim().to_string(),
            api: info.backend.to_str(),
            software: info.device_type == wgpu::DeviceType::Cpu,
            subgroups: subgroups.then_some((info.subgroup_min_size, info.subgroup_max_size)),
            f16: features.contains(wgpu::Features::SHADER_F16),
            timestamps: features.contains(TIMESTAMPS),
            binding: limits.max_storage_buffer_binding_size,
            buffer: limits.max_buffer_size,
            workgroups: limits.max_compute_workgroups_per_dimension,
            pci: info.device_pci_bus_id,
            name: info.name,
        }
    }
}

/// The most storage buffers that a kernel binds.
const STORAGE_BUFFERS: u32 = 10;

const TIMESTAMPS: wgpu::Features =
    wgpu::Features::TIMESTAMP_QUERY.union(wgpu::Features::TIMESTAMP_QUERY_INSIDE_PASSES);

/// All adapters, real ones first, the most capable kind first.
pub fn devices() -> Vec<DeviceInfo> {
    adapters().iter().map(DeviceInfo::of).collect()
}

fn adapters() -> Vec<wgpu::Adapter> {
    let descriptor = wgpu::InstanceDescriptor {
        backends: wgpu::Backends::PRIMARY,
        // In particular not VALIDATION_INDIRECT_CALL, which costs time even in release builds.
        flags: wgpu::InstanceFlags::empty(),
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    };
    let instance = wgpu::Instance::new(descriptor);
    let mut adapters = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::PRIMARY));
    adapters.sort_by_key(|adapter| {
        Reverse(match adapter.get_info().device_type {
            wgpu::DeviceType::DiscreteGpu => 4,
            wgpu::DeviceType::IntegratedGpu => 3,
            wgpu::DeviceType::VirtualGpu => 2,
            wgpu::DeviceType::Other => 1,
            wgpu::DeviceType::Cpu => 0,
        })
    });
    adapters
}

fn choose(options: &GpuOptions) -> Result<wgpu::Adapter> {
    let wanted = options.device.as_deref().unwrap_or("");
    let matches = |name: &str| name.to_lowercase().contains(&wanted.to_lowercase());
    let all = adapters();
    let names: Vec<String> = all.iter().map(|adapter| adapter.get_info().name).collect();
    let named: Vec<_> = all.into_iter().filter(|adapter| matches(&adapter.get_info().name)).collect();
    if named.is_empty() {
        let found = if names.is_empty() { "none".to_string() } else { names.join(", ") };
        let device = if wanted.is_empty() { "gpu" } else { wanted };
        return Err(Error::device(device, format!("no such adapter; found: {found}")));
    }
    let allowed = |adapter: &wgpu::Adapter| options.allow_software || !DeviceInfo::of(adapter).software;
    named.into_iter().find(allowed).ok_or_else(|| {
        Error::device(names.join(", "), "only a software adapter was found; it is used only when asked for")
    })
}

/// The first error that the device reported and nobody was told of yet.
#[derive(Debug, Default)]
struct Reported {
    error: Option<String>,
    lost: bool,
}

/// An opened device.
pub(super) struct Gpu {
    pub device: wgpu::Device,
    pub queue: wgpu::Queue,
    pub info: DeviceInfo,
    /// What plans and steps must fit: the caller's limits or the device's, whichever is lower.
    pub limits: Limits,
    /// Shaders check their bounds.
    pub checked: bool,
    pub pipelines: Pipelines,
    reported: Arc<Mutex<Reported>>,
}

impl Gpu {
    pub fn open(options: &GpuOptions) -> Result<Self> {
        let adapter = choose(options)?;
        let info = DeviceInfo::of(&adapter);
        let buffers = adapter.limits().max_storage_buffers_per_shader_stage;
        if buffers < STORAGE_BUFFERS {
            let reason = format!("{buffers} storage buffers per shader, kernels need {STORAGE_BUFFERS}");
            return Err(Error::device(&info.name, reason));
        }
        let wanted = wgpu::Features::SUBGROUP | TIMESTAMPS;
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("wattle"),
            required_features: adapter.features() & wanted,
            required_limits: adapter.limits(),
            memory_hints: wgpu::MemoryHints::MemoryUsage,
            ..wgpu::DeviceDescriptor::default()
        };
        let (device, queue) = pollster::block_on(adapter.request_device(&descriptor))
            .map_err(|error| Error::device(&info.name, error))?;
        let reported = Arc::new(Mutex::new(Reported::default()));
        let on_error = Arc::clone(&reported);
        device.on_uncaptured_error(Arc::new(move |error| {
            lock(&on_error).error.get_or_insert(error.to_string());
        }));
        let on_loss = Arc::clone(&reported);
        device.set_device_lost_callback(move |reason, message| {
            // Dropping the device is reported as a loss, too; nobody is left to read it then.
            *lock(&on_loss) = Reported { error: Some(format!("lost ({reason:?}): {message}")), lost: true };
        });
        let asked = options.limits;
        let limits = Limits {
            binding: asked.binding.min(info.binding).min(info.buffer),
            workgroups: asked.workgroups.min(info.workgroups),
            subgroups: asked.subgroups && info.subgroups.is_some(),
            f16: asked.f16 && info.f16,
            guards: asked.guards,
            lost_after: asked.lost_after,
        };
        let pipelines = Pipelines::new(&device);
        Ok(Self { device, queue, info, limits, checked: options.checked, pipelines, reported })
    }

    pub fn error(&self, reason: impl ToString) -> Error {
        Error::device(&self.info.name, reason)
    }

    /// The first error that the device reported since the last call. A lost device stays lost.
    pub fn check(&self) -> Result<()> {
        let mut reported = lock(&self.reported);
        let error = if reported.lost { reported.error.clone() } else { reported.error.take() };
        error.map_or(Ok(()), |error| Err(self.error(error)))
    }

    /// Waits for a submission (or for all).
    pub fn wait(&self, submission_index: Option<wgpu::SubmissionIndex>) -> Result<()> {
        self.check()?;
        self.device
            .poll(wgpu::PollType::Wait { submission_index, timeout: None })
            .map_err(|error| self.error(error))?;
        self.check()
    }

    /// A storage buffer of at least `bytes`, zeroed.
    pub fn storage(&self, label: &str, bytes: u64) -> Result<wgpu::Buffer> {
        let size = bytes.next_multiple_of(16).max(16);
        if size > self.info.binding.min(self.info.buffer) {
            let most = self.info.binding.min(self.info.buffer);
            return Err(
                self.error(format!("{label} needs a buffer of {size} bytes, the device allows {most}"))
            );
        }
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        Ok(self.buffer(label, size, usage))
    }

    pub fn buffer(&self, label: &str, size: u64, usage: wgpu::BufferUsages) -> wgpu::Buffer {
        self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(label),
            size,
            usage,
            mapped_at_creation: false,
        })
    }

    /// A buffer that copies can fill and the host can map.
    pub fn staging(&self, bytes: u64) -> wgpu::Buffer {
        self.buffer("staging", bytes.max(16), wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST)
    }

    /// The bytes of ranges (buffer, offset, bytes; multiples of 4), after all that was submitted.
    pub fn read(&self, ranges: &[(&wgpu::Buffer, u64, u64)]) -> Result<Vec<u8>> {
        let total = ranges.iter().map(|range| range.2).sum();
        let staging = self.staging(total);
        let mut encoder = self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let mut at = 0;
        for &(buffer, offset, bytes) in ranges {
            encoder.copy_buffer_to_buffer(buffer, offset, &staging, at, bytes);
            at += bytes;
        }
        let submission = self.queue.submit([encoder.finish()]);
        let mapped = Mapped::start(staging, total);
        self.wait(Some(submission))?;
        Ok(mapped.finish(self)?.0)
    }
}

/// A staging buffer that is being mapped.
pub(super) struct Mapped {
    buffer: wgpu::Buffer,
    bytes: u64,
    outcome: mpsc::Receiver<Result<(), wgpu::BufferAsyncError>>,
}

impl Mapped {
    /// Asks for the first `bytes`; call after the submission that fills them.
    pub fn start(buffer: wgpu::Buffer, bytes: u64) -> Self {
        let (sender, outcome) = mpsc::channel();
        buffer.slice(..bytes.max(4)).map_async(wgpu::MapMode::Read, move |result| {
            // The receiver is gone only if nobody wants the result any more.
            let _ = sender.send(result);
        });
        Self { buffer, bytes, outcome }
    }

    /// [`Self::start`] for the whole buffer.
    pub fn all(buffer: wgpu::Buffer) -> Self {
        let bytes = buffer.size();
        Self::start(buffer, bytes)
    }

    /// The bytes, and the buffer for further use; the submission must have been waited for.
    pub fn finish(self, gpu: &Gpu) -> Result<(Vec<u8>, wgpu::Buffer)> {
        let outcome = self.outcome.try_recv().map_err(|_| gpu.error("a read-back did not finish"))?;
        outcome.map_err(|error| gpu.error(error))?;
        let view = self.buffer.slice(..self.bytes.max(4)).get_mapped_range().map_err(|e| gpu.error(e))?;
        let bytes = view[..self.bytes as usize].to_vec();
        drop(view);
        self.buffer.unmap();
        Ok((bytes, self.buffer))
    }
}

fn lock(reported: &Mutex<Reported>) -> std::sync::MutexGuard<'_, Reported> {
    reported.lock().unwrap_or_else(PoisonError::into_inner)
}
