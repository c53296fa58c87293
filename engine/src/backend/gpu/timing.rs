//! Times of ops, from timestamps between them.

use super::device::Gpu;
use super::prepared::Prepared;

/// Timestamps of one step: before each op, and after the last.
pub(super) struct Stamps {
    queries: wgpu::QuerySet,
    count: u32,
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
        Some(Self { queries: gpu.device.create_query_set(&descriptor), count })
    }

    pub fn write(&self, pass: &mut wgpu::ComputePass, op: usize) {
        pass.write_timestamp(&self.queries, op as u32);
    }

    pub fn finish(&self, pass: &mut wgpu::ComputePass) {
        pass.write_timestamp(&self.queries, self.count - 1);
    }

    /// Copies the timestamps to a buffer that can be mapped.
    pub fn resolve(&self, gpu: &Gpu, encoder: &mut wgpu::CommandEncoder) -> wgpu::Buffer {
        let bytes = u64::from(self.count) * 8;
        let usage = wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC;
        let (resolved, staging) = (gpu.buffer("timestamps", bytes, usage), gpu.staging(bytes));
        encoder.resolve_query_set(&self.queries, 0..self.count, &resolved, 0);
        encoder.copy_buffer_to_buffer(&resolved, 0, &staging, 0, bytes);
        staging
    }
}

/// Adds the times between timestamps to the timings of the ops from `first` on. `period` is in nanoseconds.
pub(super) fn add(prepared: &mut Prepared, first: usize, bytes: &[u8], period: f64) {
    let stamps: Vec<u64> = bytemuck::pod_collect_to_vec(bytes);
    let spans = stamps.windows(2).map(|pair| pair[1].saturating_sub(pair[0]) as f64 * period * 1e-9);
    let ops = prepared.timings.iter_mut().zip(&prepared.ops).skip(first);
    for ((timing, dispatches), seconds) in ops.zip(spans) {
        timing.seconds += seconds;
        timing.launches += dispatches.len() as u64;
    }
}
