//! Split attention: the chunks of a long sequence, each by a workgroup of its own.

use wattle_shaders::{Row, params::CHUNK};

use super::device::Gpu;
use super::launch::stride;
use crate::backend::Capacity;
use crate::error::Result;
use crate::plan::KvShape;

/// Elements that a workgroup has of its heads (`ELEMENTS` in `handed.wgsl`), and heads (`MOST` in `chunks.wgsl`).
const ELEMENTS: usize = 1024;
const HEADS: usize = 8;
/// Rows of a step whose sequences are split: more fill a device by themselves.
const ROWS: usize = 64;
/// Chunks of all rows of a step at most, so that the parts take a few MiB.
const CHUNKS: usize = 1024;

/// What workgroups hand over to each other.
pub(super) struct Split {
    /// Heads of a workgroup, which share a key head, and workgroups for all heads of one.
    pub heads: u32,
    pub blocks: u32,
    /// f32 \[rows × chunks, kv_heads × blocks, heads, 2 + head_dim padded to 4\].
    pub parts: wgpu::Buffer,
    /// u32 \[rows, kv_heads × blocks\], zeros between launches.
    pub done: wgpu::Buffer,
    /// Chunks of all rows that there is room for.
    room: usize,
}

impl Split {
    /// `None` where workgroups cannot see what others wrote, or heads are too wide.
    pub fn new(gpu: &Gpu, shape: KvShape, capacity: Capacity) -> Result<Option<Self>> {
        let head_dim = stride(shape.head_dim);
        let most = HEADS.min(ELEMENTS / head_dim.max(1));
        if !gpu.limits.coherent || most == 0 {
            return Ok(None);
        }
        let group = shape.heads / shape.kv_heads.max(1);
        let blocks = group.div_ceil(most);
        let heads = group.div_ceil(blocks);
        let bytes = shape.kv_heads * blocks * heads * (2 + head_dim) * 4;
        let fitting = usize::try_from(gpu.limits.binding).unwrap_or(usize::MAX) / bytes.max(1);
        let rows = capacity.rows.min(ROWS);
        let room = fitting.min(CHUNKS).min(rows * capacity.context.div_ceil(CHUNK));
        let parts = gpu.storage("parts of attention", (room * bytes) as u64)?;
        let done = gpu.storage("chunks that are done", (rows * shape.kv_heads * blocks * 4) as u64)?;
        Ok(Some(Self { heads: heads as u32, blocks: blocks as u32, parts, done, room }))
    }

    /// The chunks that these rows are split into, 1 where they are not: as many as the longest has, since how a row is
    /// summed does not depend on it.
    pub fn chunks(&self, rows: &[Row]) -> u32 {
        let longest = rows.iter().map(|row| row.position as usize / CHUNK + 1).max().unwrap_or(1);
        if rows.len() <= ROWS && rows.len() * longest <= self.room { longest as u32 } else { 1 }
    }
}
