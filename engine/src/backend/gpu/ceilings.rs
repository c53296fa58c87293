//! What a device can do at most, measured: how fast it reads, and how fast it multiplies and adds.

use std::time::{Duration, Instant};

use wattle_shaders::ceilings::{INVOCATIONS, MULTIPLY, MULTIPLY_ADDS, READ};

use super::device::Gpu;
use super::weights::Uploader;
use super::{DeviceInfo, GpuOptions};
use crate::error::Result;

/// One timing takes so long at least: then starting and waiting do not count.
const LEAST: Duration = Duration::from_millis(20);
/// Workgroups of a dispatch at most: many times what any device runs at once.
const GROUPS: u64 = 1 << 14;
/// Bytes that a dispatch reads at least.
const AT_ONCE: u64 = 64 << 20;
/// The largest buffer that is read: more than any device's caches.
const FOOTPRINT: u64 = 512 << 20;

/// A device of its own that measures its limits.
pub struct Ceilings {
    gpu: Gpu,
}

impl Ceilings {
    /// Opens the device that a backend with these options would run on.
    ///
    /// # Errors
    /// As for [`super::GpuBackend::new`].
    pub fn open(options: &GpuOptions) -> Result<Self> {
        Ok(Self { gpu: Gpu::open(options)? })
    }

    /// What is known of the device.
    pub fn info(&self) -> &DeviceInfo {
        &self.gpu.info
    }

    /// Bytes per second at which a buffer of `bytes` bytes (no more than 512 MiB) is read, over and over: the best of
    /// three timings. A buffer that fits a cache is read from there, as weights of that size would be.
    ///
    /// # Errors
    /// [`crate::Error::Device`] when the device fails or has no room for the buffer.
    pub fn read(&self, bytes: u64) -> Result<f64> {
        let most = FOOTPRINT.min(self.gpu.info.binding).min(self.gpu.info.buffer);
        let bytes = bytes.clamp(16, most) / 16 * 16;
        let x = self.filled(bytes)?;
        let groups = (bytes / 16).div_ceil(INVOCATIONS).min(self.groups());
        let passes = AT_ONCE.div_ceil(bytes);
        let dispatch = Dispatch::new(&self.gpu, READ, &[("0", passes as f64)], &x, groups)?;
        Ok((bytes * passes) as f64 / self.seconds(&dispatch)?)
    }

    /// Multiply-adds in f32 per second: the best of three timings.
    ///
    /// # Errors
    /// [`crate::Error::Device`] when the device fails.
    pub fn multiply_adds(&self) -> Result<f64> {
        let x = self.filled(16)?;
        let groups = self.groups().min(GROUPS / 8);
        let dispatch = Dispatch::new(&self.gpu, MULTIPLY, &[], &x, groups)?;
        Ok((groups * INVOCATIONS * MULTIPLY_ADDS) as f64 / self.seconds(&dispatch)?)
    }

    fn groups(&self) -> u64 {
        GROUPS.min(u64::from(self.gpu.limits.workgroups))
    }

    /// A buffer of numbers between 0 and 1, which differ so that nothing compresses them.
    fn filled(&self, bytes: u64) -> Result<wgpu::Buffer> {
        const PIECE: u64 = 4 << 20;
        let buffer = self.gpu.storage("ceilings", bytes)?;
        let number = |word: u32| (word.wrapping_mul(0x9E37_79B9) >> 9 | 0x3F00_0000) & 0x3F7F_FFFF;
        let words: Vec<u32> = (0..(bytes.min(PIECE) / 4) as u32).map(number).collect();
        let mut uploader = Uploader { gpu: &self.gpu, waiting: 0 };
        let mut at = 0;
        while at < bytes {
            let piece = PIECE.min(bytes - at);
            uploader.bytes(&buffer, at, &bytemuck::cast_slice(&words)[..piece as usize])?;
            at += piece;
        }
        uploader.flush()?;
        self.gpu.check()?;
        Ok(buffer)
    }

    /// Seconds of one dispatch: the best of three timings of as many as take long enough.
    fn seconds(&self, dispatch: &Dispatch) -> Result<f64> {
        let mut count = 1_u32;
        while dispatch.time(&self.gpu, count)? < LEAST && count < 1 << 14 {
            count *= 2;
        }
        let mut best = Duration::MAX;
        for _ in 0..3 {
            best = best.min(dispatch.time(&self.gpu, count)?);
        }
        Ok(best.as_secs_f64() / f64::from(count))
    }
}

/// A pipeline with its operands.
struct Dispatch {
    pipeline: wgpu::ComputePipeline,
    bindings: wgpu::BindGroup,
    groups: u32,
}

impl Dispatch {
    fn new(gpu: &Gpu, text: &str, constants: &[(&str, f64)], x: &wgpu::Buffer, groups: u64) -> Result<Self> {
        let module = gpu.device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: Some("ceilings"),
            source: wgpu::ShaderSource::Wgsl(text.into()),
        });
        let pipeline = gpu.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some("ceilings"),
            layout: None,
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants,
                ..wgpu::PipelineCompilationOptions::default()
            },
            cache: None,
        });
        let a = gpu.storage("ceilings", 16)?;
        let entries = [(0, x), (1, &a)]
            .map(|(binding, buffer)| wgpu::BindGroupEntry { binding, resource: buffer.as_entire_binding() });
        let bindings = gpu.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some("ceilings"),
            layout: &pipeline.get_bind_group_layout(0),
            entries: &entries,
        });
        gpu.check()?;
        Ok(Self { pipeline, bindings, groups: groups as u32 })
    }

    /// How long so many of it take in one pass.
    fn time(&self, gpu: &Gpu, count: u32) -> Result<Duration> {
        let mut encoder = gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        pass.set_pipeline(&self.pipeline);
        pass.set_bind_group(0, &self.bindings, &[]);
        for _ in 0..count {
            pass.dispatch_workgroups(self.groups, 1, 1);
        }
        drop(pass);
        let commands = encoder.finish();
        let started = Instant::now();
        let submission = gpu.queue.submit([commands]);
        gpu.wait(Some(submission))?;
        Ok(started.elapsed())
    }
}
