//! Times of ops, from timestamps between them.

use super::device::{Gpu, Mapped};
use super::prepared::Prepared;

/// Timestamps of one step: before each op, and after the last.
pub(super) struct Stamps {
    queries: wgpu::QuerySet,
    count: u32,
    /// Launches of each op.
    launches: Vec<u64>,
}

/// Timestamps on their way to the host, and the launches of each op.
pub(super) struct Stamped {
    pub stamps: Mapped,
    pub launches: Vec<u64>,
}

impl Stamped {
    /// What [`Stamps::resolve`] gave, once it was submitted.
    pub fn start((staging, launches): (wgpu::Buffer, Vec<u64>)) -> Self {
        Self { stamps: Mapped::all(staging), launches }
    }
}

impl Stamps {
    /// Room for the timestamps of so many ops; `None` where the device has none, or not as many.
    pub fn new(gpu: &Gpu, ops: usize) -> Option<Self> {
        let count = ops as u32 + 1;
        if !gpu.info.timestamps || count > wgpu::QUERY_SET_MAX_QUERIES {
            return None;
        }
        let ty = wgpu::QueryType::Timestamp;
        let descriptor = wgpu::QuerySetDescriptor { label: Some("ops"), ty, count };
        Some(Self { queries: gpu.device.create_query_set(&descriptor), count, launches: Vec::new() })
    }

    /// Before the next op.
    pub fn write(&mut self, pass: &mut wgpu::ComputePass) {
        pass.write_timestamp(&self.queries, self.launches.len() as u32);
        self.launches.push(0);
    }

    /// A launch of that op.
    pub fn count(&mut self) {
        if let Some(launches) = self.launches.last_mut() {
            *launches += 1;
        }
    }

    pub fn finish(&self, pass: &mut wgpu::ComputePass) {
        pass.write_timestamp(&self.queries, self.count - 1);
    }

    /// Copies the timestamps to a buffer that can be mapped.
    pub fn resolve(self, gpu: &Gpu, encoder: &mut wgpu::CommandEncoder) -> (wgpu::Buffer, Vec<u64>) {
        let bytes = u64::from(self.count) * 8;
        let usage = wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC;
        let (resolved, staging) = (gpu.buffer("timestamps", bytes, usage), gpu.staging(bytes));
        encoder.resolve_query_set(&self.queries, 0..self.count, &resolved, 0);
        encoder.copy_buffer_to_buffer(&resolved, 0, &staging, 0, bytes);
        (staging, self.launches)
    }
}

/// Adds the times between timestamps, and the launches, to the timings of the ops from `first` on. `period` is in
/// nanoseconds.
pub(super) fn add(prepared: &mut Prepared, first: usize, launches: &[u64], bytes: &[u8], period: f64) {
    let stamps: Vec<u64> = bytemuck::pod_collect_to_vec(bytes);
    let spans = stamps.windows(2).map(|pair| pair[1].saturating_sub(pair[0]) as f64 * period * 1e-9);
    for ((timing, launches), seconds) in prepared.timings.iter_mut().skip(first).zip(launches).zip(spans) {
        timing.seconds += seconds;
        timing.launches += launches;
    }
}
