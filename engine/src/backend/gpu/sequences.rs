//! What the device keeps of sequences: the KV cache (per layer one buffer of keys and one of values, or several where
//! one binding cannot hold them) and the states.

use std::ops::Range;

use wattle_shaders::params;

use super::device::Gpu;
use super::split::Split;
use crate::backend::Capacity;
use crate::error::{Error, Result};
use crate::plan::KvShape;

/// Consecutive cells of a layer. A cell is (key head, sequence): f32 \[positions, head_dim padded to 4\].
pub(super) struct Cells {
    pub k: wgpu::Buffer,
    pub v: wgpu::Buffer,
    first: usize,
    count: usize,
}

/// Cache and states of all sequences.
pub(super) struct Sequences {
    pub shape: KvShape,
    pub vocab: usize,
    pub layers: Vec<Vec<Cells>>,
    /// u32 \[sequences, `state_stride`\]: the last sampled token, then a bit for every token: was it seen?
    pub state: wgpu::Buffer,
    pub capacity: Capacity,
    /// What attention has for splitting sequences; `None` where the device cannot.
    pub split: Option<Split>,
    /// Room for one cell or state: WebGPU does not copy within one buffer.
    scratch: wgpu::Buffer,
}

impl Sequences {
    pub fn new(gpu: &Gpu, shape: KvShape, vocab: usize, capacity: Capacity) -> Result<Self> {
        let stride = shape.head_dim.next_multiple_of(4);
        let cell = (capacity.context * stride * 4).max(16);
        let per_buffer = usize::try_from(gpu.limits.binding).unwrap_or(usize::MAX) / cell;
        if per_buffer == 0 {
            let most = gpu.limits.binding;
            return Err(gpu.error(format!(
                "one head's keys for {} positions take {cell} bytes, a binding holds {most}: lower the context",
                capacity.context
            )));
        }
        let cells = shape.kv_heads * capacity.sequences;
        let buffers = || -> Result<Vec<Cells>> {
            let part = |first| {
                let count = per_buffer.min(cells - first);
                let k = gpu.storage("keys", (count * cell) as u64)?;
                let v = gpu.storage("values", (count * cell) as u64)?;
                Ok(Cells { k, v, first, count })
            };
            (0..cells).step_by(per_buffer).map(part).collect()
        };
        let layers = (0..shape.layers).map(|_| buffers()).collect::<Result<_>>()?;
        let state_bytes = state_stride(vocab) * 4;
        let state = gpu.storage("sequence states", (capacity.sequences * state_bytes) as u64)?;
        let scratch = gpu.storage("scratch", cell.max(state_bytes) as u64)?;
        let split = Split::new(gpu, shape, capacity)?;
        gpu.check()?;
        Ok(Self { shape, vocab, layers, state, capacity, split, scratch })
    }

    /// Words of a sequence's state.
    pub fn state_stride(&self) -> usize {
        state_stride(self.vocab)
    }

    /// Clears a sequence's state.
    pub fn reset(&self, gpu: &Gpu, sequence: usize) {
        let bytes = self.state_stride() * 4;
        gpu.queue.write_buffer(&self.state, (sequence * bytes) as u64, &vec![0; bytes]);
    }

    /// What shaders know of a buffer.
    pub fn params(&self, cells: &Cells) -> params::Cache {
        params::Cache {
            kv_heads: self.shape.kv_heads as u32,
            head_dim: self.shape.head_dim as u32,
            sequences: self.capacity.sequences as u32,
            positions: self.capacity.context as u32,
            first: cells.first as u32,
            cells: cells.count as u32,
            _pad: 0,
            _pad2: 0,
        }
    }

    pub fn kv_bytes(&self) -> u64 {
        self.layers.iter().flatten().map(|cells| cells.k.size() + cells.v.size()).sum()
    }

    fn stride(&self) -> usize {
        self.shape.head_dim.next_multiple_of(4)
    }

    /// The buffers of a head's cell of a sequence, and the bytes of `positions` in them.
    fn cell(
        &self,
        layer: usize,
        head: usize,
        sequence: usize,
        positions: usize,
    ) -> Result<(&Cells, Range<u64>)> {
        let index = head * self.capacity.sequences + sequence;
        let cells = self.layers.get(layer).into_iter().flatten();
        let cells = cells.into_iter().find(|cells| (cells.first..cells.first + cells.count).contains(&index));
        let cells = cells
            .ok_or_else(|| Error::value("layer", format!("{layer}: the cache has {}", self.layers.len())))?;
        let start = (index - cells.first) * self.capacity.context * self.stride() * 4;
        Ok((cells, start as u64..(start + positions * self.stride() * 4) as u64))
    }

    /// Copies the first `positions` of a sequence, in all layers, and its state.
    pub fn copy(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        from: usize,
        to: usize,
        positions: usize,
    ) -> Result<()> {
        for layer in 0..self.shape.layers {
            for head in 0..self.shape.kv_heads {
                let (source, read) = self.cell(layer, head, from, positions)?;
                let (target, written) = self.cell(layer, head, to, positions)?;
                let bytes = read.end - read.start;
                for (source, target) in [(&source.k, &target.k), (&source.v, &target.v)] {
                    encoder.copy_buffer_to_buffer(source, read.start, &self.scratch, 0, bytes);
                    encoder.copy_buffer_to_buffer(&self.scratch, 0, target, written.start, bytes);
                }
            }
        }
        let bytes = (self.state_stride() * 4) as u64;
        encoder.copy_buffer_to_buffer(&self.state, from as u64 * bytes, &self.scratch, 0, bytes);
        encoder.copy_buffer_to_buffer(&self.scratch, 0, &self.state, to as u64 * bytes, bytes);
        Ok(())
    }

    /// K and V of a layer and sequence, each \[positions, kv_heads × head_dim\].
    pub fn export(
        &self,
        gpu: &Gpu,
        layer: usize,
        sequence: usize,
        positions: usize,
    ) -> Result<[Vec<f32>; 2]> {
        let heads = (0..self.shape.kv_heads).map(|head| self.cell(layer, head, sequence, positions));
        let cells = heads.collect::<Result<Vec<_>>>()?;
        let range = |buffer, bytes: &Range<u64>| (buffer, bytes.start, bytes.end - bytes.start);
        let k = cells.iter().map(|(cells, bytes)| range(&cells.k, bytes));
        let v = cells.iter().map(|(cells, bytes)| range(&cells.v, bytes));
        let read = gpu.read(&k.chain(v).collect::<Vec<_>>())?;
        let values: Vec<f32> = bytemuck::pod_collect_to_vec(&read);
        let (stride, dim, width) = (self.stride(), self.shape.head_dim, self.shape.width());
        let side = |side: usize| {
            let mut out = vec![0.0; positions * width];
            for head in 0..self.shape.kv_heads {
                for position in 0..positions {
                    let from = ((side * self.shape.kv_heads + head) * positions + position) * stride;
                    out[position * width + head * dim..][..dim].copy_from_slice(&values[from..][..dim]);
                }
            }
            out
        };
        Ok([side(0), side(1)])
    }

    /// Writes K and V as [`Self::export`] returns them.
    pub fn import(&self, gpu: &Gpu, layer: usize, sequence: usize, kv: &[Vec<f32>; 2]) -> Result<()> {
        let (stride, dim, width) = (self.stride(), self.shape.head_dim, self.shape.width());
        let positions = kv[0].len() / width.max(1);
        for head in 0..self.shape.kv_heads {
            let (cells, bytes) = self.cell(layer, head, sequence, positions)?;
            for (buffer, values) in [&cells.k, &cells.v].into_iter().zip(kv) {
                let mut padded = vec![0.0f32; positions * stride];
                for (to, from) in padded.chunks_exact_mut(stride).zip(values.chunks_exact(width)) {
                    to[..dim].copy_from_slice(&from[head * dim..][..dim]);
                }
                gpu.queue.write_buffer(buffer, bytes.start, bytemuck::cast_slice(&padded));
            }
        }
        gpu.check()
    }
}

fn state_stride(vocab: usize) -> usize {
    1 + vocab.div_ceil(32)
}
