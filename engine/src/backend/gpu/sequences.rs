//! What the device keeps of sequences: the pages of the KV cache (per layer one buffer of keys and one of values, or
//! several where one binding cannot hold them) and the states.

use wattle_shaders::params;

use super::device::Gpu;
use super::kv::{block_bytes, decode, elements_bytes, encode, ranges};
use super::split::Split;
use super::step;
use crate::backend::Capacity;
use crate::cache::{PAGE, pages_for};
use crate::error::{Error, Result};
use crate::plan::KvShape;

/// Consecutive key heads of a layer: \[pages, heads\] blocks, see `shared/cache.wgsl`.
pub(super) struct Heads {
    pub k: wgpu::Buffer,
    pub v: wgpu::Buffer,
    first: usize,
    count: usize,
}

/// Cache and states of all sequences.
pub(super) struct Sequences {
    pub shape: KvShape,
    pub vocab: usize,
    pub layers: Vec<Vec<Heads>>,
    /// u32 \[sequences, `state_stride`\]: the last sampled token, then a bit for every token: was it seen?
    pub state: wgpu::Buffer,
    pub capacity: Capacity,
    /// What attention has for splitting sequences; `None` where the device cannot.
    pub split: Option<Split>,
    /// Room for a page's keys: WebGPU does not copy within one buffer.
    scratch: wgpu::Buffer,
}

impl Sequences {
    pub fn new(gpu: &Gpu, shape: KvShape, vocab: usize, capacity: Capacity) -> Result<Self> {
        let block = block_bytes(&shape);
        let head = capacity.pages.max(1).saturating_mul(block);
        let per_buffer = usize::try_from(gpu.limits.binding).unwrap_or(usize::MAX) / head;
        if per_buffer == 0 {
            let most = gpu.limits.binding;
            return Err(gpu.error(format!(
                "one head's keys for {} pages of {PAGE} positions take {head} bytes, a binding holds {most}: lower \
                 the context, or the number of sequences",
                capacity.pages
            )));
        }
        let buffers = || -> Result<Vec<Heads>> {
            let part = |first| {
                let count = per_buffer.min(shape.kv_heads - first);
                let k = gpu.storage("keys", (count * head) as u64)?;
                let v = gpu.storage("values", (count * head) as u64)?;
                Ok(Heads { k, v, first, count })
            };
            (0..shape.kv_heads).step_by(per_buffer).map(part).collect()
        };
        let layers = (0..shape.layers).map(|_| buffers()).collect::<Result<_>>()?;
        let state_bytes = state_stride(vocab) * 4;
        let state = gpu.storage("sequence states", (capacity.sequences * state_bytes) as u64)?;
        let scratch = gpu.storage("scratch", (per_buffer.min(shape.kv_heads) * block) as u64)?;
        let split = Split::new(gpu, shape, capacity)?;
        gpu.check()?;
        Ok(Self { shape, vocab, layers, state, capacity, split, scratch })
    }

    /// Words of a sequence's state.
    pub fn state_stride(&self) -> usize {
        state_stride(self.vocab)
    }

    /// Clears a sequence's state, but for the tokens that were seen.
    pub fn reset(&self, gpu: &Gpu, sequence: usize, seen: &[u32]) {
        let mut state = vec![0_u32; self.state_stride()];
        for &token in seen {
            state[1 + token as usize / 32] |= 1 << (token % 32);
        }
        let offset = (sequence * state.len() * 4) as u64;
        gpu.queue.write_buffer(&self.state, offset, bytemuck::cast_slice(&state));
    }

    /// What shaders know of a buffer.
    pub fn params(&self, heads: &Heads) -> params::Cache {
        params::Cache {
            kv_heads: self.shape.kv_heads as u32,
            head_dim: self.shape.head_dim as u32,
            first: heads.first as u32,
            heads: heads.count as u32,
            tables: (step::tables_at(&self.capacity) / 16) as u32,
            stride: pages_for(self.capacity.context) as u32,
            _pad: [0; 2],
        }
    }

    pub fn kv_bytes(&self) -> u64 {
        self.layers.iter().flatten().map(|heads| heads.k.size() + heads.v.size()).sum()
    }

    /// Copies a page, in all layers.
    pub fn copy_page(&self, encoder: &mut wgpu::CommandEncoder, from: u32, to: u32) {
        for heads in self.layers.iter().flatten() {
            let bytes = (heads.count * block_bytes(&self.shape)) as u64;
            let [from, to] = [from, to].map(|page| u64::from(page) * bytes);
            for buffer in [&heads.k, &heads.v] {
                encoder.copy_buffer_to_buffer(buffer, from, &self.scratch, 0, bytes);
                encoder.copy_buffer_to_buffer(&self.scratch, 0, buffer, to, bytes);
            }
        }
    }

    /// The buffers of a head of a layer, and where they have its block of a page.
    fn block(&self, layer: usize, head: usize, page: u32) -> Result<(&Heads, usize)> {
        let all = self.layers.get(layer).into_iter().flatten();
        let heads = all.into_iter().find(|heads| (heads.first..heads.first + heads.count).contains(&head));
        let heads = heads
            .ok_or_else(|| Error::value("layer", format!("{layer}: the cache has {}", self.layers.len())))?;
        let index = page as usize * heads.count + head - heads.first;
        Ok((heads, index * block_bytes(&self.shape)))
    }

    /// For each page and head: buffers, where the block begins, and the first of its positions, of `positions` in all.
    fn blocks(
        &self,
        layer: usize,
        pages: &[u32],
        positions: usize,
    ) -> Result<Vec<(&Heads, usize, usize, usize)>> {
        let mut blocks = Vec::new();
        for (&page, first) in pages.iter().zip((0..positions).step_by(PAGE)) {
            for head in 0..self.shape.kv_heads {
                let (heads, at) = self.block(layer, head, page)?;
                blocks.push((heads, at, head, first));
            }
        }
        Ok(blocks)
    }

    /// K and V of the first positions of some pages of a layer, each \[positions, kv_heads × head_dim\].
    pub fn export(&self, gpu: &Gpu, layer: usize, pages: &[u32], positions: usize) -> Result<[Vec<f32>; 2]> {
        let blocks = self.blocks(layer, pages, positions)?;
        let count = |first: usize| PAGE.min(positions - first);
        let mut sources = Vec::new();
        for &(heads, at, _, first) in &blocks {
            for buffer in [&heads.k, &heads.v] {
                for range in ranges(&self.shape, count(first)).into_iter().filter(|range| !range.is_empty()) {
                    sources.push((buffer, (at + range.start) as u64, range.len() as u64));
                }
            }
        }
        let read = gpu.read(&sources)?;
        let (width, dim) = (self.shape.width(), self.shape.head_dim);
        let (element, scale) = (elements_bytes(&self.shape), self.shape.store.scale_bytes());
        let mut sides = [vec![0.0; positions * width], vec![0.0; positions * width]];
        let mut rest = &read[..];
        for (_, _, head, first) in blocks {
            for side in &mut sides {
                let (elements, after) = rest.split_at(count(first) * element);
                let (scales, after) = after.split_at(count(first) * scale);
                for index in 0..count(first) {
                    let scale = &scales[index * scale..][..scale];
                    let values = decode(&self.shape, &elements[index * element..][..element], scale);
                    side[(first + index) * width + head * dim..][..dim].copy_from_slice(&values);
                }
                rest = after;
            }
        }
        Ok(sides)
    }

    /// Writes K and V as [`Self::export`] returns them.
    pub fn import(&self, gpu: &Gpu, layer: usize, pages: &[u32], kv: &[Vec<f32>; 2]) -> Result<()> {
        let (width, dim) = (self.shape.width(), self.shape.head_dim);
        let positions = kv[0].len() / width.max(1);
        for (heads, at, head, first) in self.blocks(layer, pages, positions)? {
            for (buffer, values) in [&heads.k, &heads.v].into_iter().zip(kv) {
                let lines = values.chunks_exact(width).skip(first).take(PAGE);
                let (mut elements, mut scales) = (Vec::new(), Vec::new());
                for line in lines {
                    let [own, scale] = encode(&self.shape, &line[head * dim..][..dim]);
                    elements.extend(own);
                    scales.extend(scale);
                }
                let [elements_at, scales_at] =
                    ranges(&self.shape, PAGE).map(|range| (at + range.start) as u64);
                gpu.queue.write_buffer(buffer, elements_at, &elements);
                if !scales.is_empty() {
                    gpu.queue.write_buffer(buffer, scales_at, &scales);
                }
            }
        }
        gpu.check()
    }
}

fn state_stride(vocab: usize) -> usize {
    1 + vocab.div_ceil(32)
}
