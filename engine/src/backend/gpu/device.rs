//! Adapters and the opened device. Every failure of a device becomes an [`Error::Device`].

use std::cmp::Reverse;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};

use super::GpuOptions;
use super::pipelines::Pipelines;
use super::tiles::{Products, Table, cooperative_memory};
use super::tuning;
use crate::backend::Limits;
use crate::error::{Error, Result};
use crate::model::Format;
use crate::options::Precision;

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
    /// Whether workgroups of a launch see what others wrote.
    pub coherent: bool,
    /// Whether it has cooperative matrices as wattle's kernels use them: 16 × 16 × 16, f16 to f32, subgroups of 32.
    pub cooperative: bool,
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
            // On Metal naga makes a fence for one workgroup of `storageBarrier`, whatever is coherent.
            coherent: features.contains(wgpu::Features::MEMORY_DECORATION_COHERENT)
                && info.backend != wgpu::Backend::Metal,
            cooperative: cooperative(adapter),
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
/// The most bytes of workgroup memory that a kernel has.
const WORKGROUP_BYTES: u32 = 20 << 10;

const TIMESTAMPS: wgpu::Features =
    wgpu::Features::TIMESTAMP_QUERY.union(wgpu::Features::TIMESTAMP_QUERY_INSIDE_PASSES);

/// Whether an adapter can run the cooperative kernels.
fn cooperative(adapter: &wgpu::Adapter) -> bool {
    let (info, limits) = (adapter.get_info(), adapter.limits());
    let fits = |p: &wgpu::CooperativeMatrixProperties| {
        let types = (p.ab_type, p.cr_type);
        (p.m_size, p.n_size, p.k_size) == (16, 16, 16)
            && types == (wgpu::CooperativeScalarType::F16, wgpu::CooperativeScalarType::F32)
    };
    adapter.features().contains(COOPERATIVE)
        && (info.subgroup_min_size, info.subgroup_max_size) == (32, 32)
        && limits.max_compute_workgroup_storage_size >= cooperative_memory()
        && adapter.cooperative_matrix_properties().iter().any(fits)
}

/// What cooperative kernels need.
const COOPERATIVE: wgpu::Features = wgpu::Features::SHADER_F16
    .union(wgpu::Features::SUBGROUP)
    .union(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX);

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
    /// Activations may be rounded.
    fast: bool,
    /// Cooperative kernels may run.
    pub cooperative: bool,
    table: Mutex<Table>,
    /// A kernel, what of its text is changed, and to what.
    #[cfg(test)]
    pub change: Option<(&'static str, &'static str, &'static str)>,
    pub pipelines: Pipelines,
    /// See [`super::upload`].
    pub uploads: Mutex<wgpu::Buffer>,
    reported: Arc<Mutex<Reported>>,
}

/// Where what the device reports from now on is noted.
fn reports(device: &wgpu::Device) -> Arc<Mutex<Reported>> {
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
    reported
}

impl Gpu {
    /// Opens the device that the options choose, with cooperative matrices (where it has them, and they are of use) or
    /// without.
    pub fn open(options: &GpuOptions, cooperative: bool) -> Result<Self> {
        let adapter = choose(options)?;
        let info = DeviceInfo::of(&adapter);
        let given = adapter.limits();
        for (what, given, needed) in [
            ("storage buffers per shader", given.max_storage_buffers_per_shader_stage, STORAGE_BUFFERS),
            ("bytes of workgroup memory", given.max_compute_workgroup_storage_size, WORKGROUP_BYTES),
        ] {
            if given < needed {
                return Err(Error::device(&info.name, format!("{given} {what}, kernels need {needed}")));
            }
        }
        let asked = options.limits;
        let fast = options.precision == Precision::Fast;
        let cooperative = cooperative && fast && asked.f16 && asked.subgroups && info.cooperative;
        let mut wanted = wgpu::Features::SUBGROUP | wgpu::Features::MEMORY_DECORATION_COHERENT | TIMESTAMPS;
        let mut experimental_features = wgpu::ExperimentalFeatures::disabled();
        if cooperative {
            wanted |= COOPERATIVE;
            // SAFETY: the kernels that use cooperative matrices are tested on the device before a plan runs them.
            experimental_features = unsafe { wgpu::ExperimentalFeatures::enabled() };
        }
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("wattle"),
            required_features: adapter.features() & wanted,
            experimental_features,
            required_limits: given,
            memory_hints: wgpu::MemoryHints::MemoryUsage,
            ..wgpu::DeviceDescriptor::default()
        };
        let (device, queue) = pollster::block_on(adapter.request_device(&descriptor))
            .map_err(|error| Error::device(&info.name, error))?;
        let reported = reports(&device);
        let limits = Limits {
            binding: asked.binding.min(info.binding).min(info.buffer),
            workgroups: asked.workgroups.min(info.workgroups),
            subgroups: asked.subgroups && info.subgroups.is_some_and(usable),
            f16: asked.f16 && info.f16,
            coherent: asked.coherent && info.coherent,
            guards: asked.guards,
            lost_after: asked.lost_after,
        };
        let pipelines = Pipelines::new(&device);
        let uploads = Mutex::new(super::upload::staging(&device));
        let memory = device.limits().max_compute_workgroup_storage_size;
        let measured = options.tuning.as_deref().map(|file| tuning::read(file, &info)).unwrap_or_default();
        let table = Mutex::new(Table { measured, forced: options.tile, memory });
        Ok(Self {
            device,
            queue,
            info,
            limits,
            checked: options.checked,
            fast,
            cooperative,
            table,
            #[cfg(test)]
            change: None,
            pipelines,
            uploads,
            reported,
        })
    }

    /// How products are made with weights of this format, for rows of class prompt.
    pub fn products(&self, format: Format) -> Products {
        Products::of(format, self.fast, self.cooperative)
    }

    /// Which tiles projections run in.
    pub fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
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

/// Whether kernels may sum over subgroups of these sizes: one size, so that all variants of a kernel sum in the same
/// order, of two or more fours of lanes, and no larger than the smallest workgroup.
fn usable((smallest, largest): (u32, u32)) -> bool {
    smallest == largest && (8..=64).contains(&smallest)
}

fn lock(reported: &Mutex<Reported>) -> std::sync::MutexGuard<'_, Reported> {
    reported.lock().unwrap_or_else(PoisonError::into_inner)
}
