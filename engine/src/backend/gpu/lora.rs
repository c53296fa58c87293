//! LoRA pools on the device: fixed strides, so that adapters come and go without a new bind group.
//!
//! Every buffer of a pool begins with the site's rank table (f32, padded to 4): kernels need one binding for both.

use std::collections::BTreeMap;
use std::sync::Arc;

use wattle_shaders::params;

use super::device::Gpu;
use crate::adapter::{Factors, Pair, Place};
use crate::error::Result;
use crate::plan::Site;

/// The most projections of a site: the length of `Site.part` in `lora.wgsl`.
const MAX_PARTS: usize = 4;

/// A part of a pool in one buffer. The unit is a row of A, or an element of B.
pub(super) struct Chunk {
    pub buffer: wgpu::Buffer,
    first: usize,
    count: usize,
}

/// The pools of a site.
pub(super) struct Pool {
    site: Arc<Site>,
    pub a: Vec<Chunk>,
    pub b: Vec<Chunk>,
}

/// What is in the slots.
type Slots = BTreeMap<usize, Arc<Factors>>;

/// The pools of all plans.
#[derive(Default)]
pub(super) struct Pools {
    pools: Vec<Arc<Pool>>,
    pub slots: Slots,
    pub bytes: u64,
}

impl Pools {
    /// The pools of a site, made and filled unless another plan has an equal one.
    pub fn of(&mut self, gpu: &Gpu, site: &Arc<Site>) -> Result<Arc<Pool>> {
        if let Some(known) = self.pools.iter().find(|pool| pool.site == *site) {
            return Ok(Arc::clone(known));
        }
        let pool = Arc::new(Pool::new(gpu, Arc::clone(site))?);
        self.slots.keys().for_each(|&slot| pool.fill(gpu, slot, &self.slots));
        self.bytes += pool.a.iter().chain(&pool.b).map(|chunk| chunk.buffer.size()).sum::<u64>();
        self.pools.push(Arc::clone(&pool));
        Ok(pool)
    }

    /// Puts factors, which were checked against all plans, into a slot of all pools, or empties it.
    pub fn set(&mut self, gpu: &Gpu, slot: usize, factors: Option<Arc<Factors>>) -> Result<()> {
        match factors {
            Some(factors) => self.slots.insert(slot, factors),
            None => self.slots.remove(&slot),
        };
        self.pools.iter().for_each(|pool| pool.fill(gpu, slot, &self.slots));
        gpu.check()
    }
}

impl Pool {
    fn new(gpu: &Gpu, site: Arc<Site>) -> Result<Self> {
        if site.targets.len() > MAX_PARTS {
            return Err(
                gpu.error(format!("a LoRA site has {} projections, {MAX_PARTS} fit", site.targets.len()))
            );
        }
        let row = site.cols.next_multiple_of(4);
        let a = chunks(gpu, "A pool", site.ranks_len(), site.a_len() / site.cols.max(1), row)?;
        let b = chunks(gpu, "B pool", site.ranks_len(), site.b_len(), 1)?;
        Ok(Self { site, a, b })
    }

    /// What shaders know of the site and of a buffer of one of its pools.
    pub fn params(&self, chunk: &Chunk) -> params::Site {
        let mut part = [params::Part::default(); MAX_PARTS];
        for (index, (part, target)) in part.iter_mut().zip(&self.site.targets).enumerate() {
            let offset = self.site.b_offset(index) as u32;
            *part = params::Part { start: target.start as u32, rows: target.rows as u32, offset, _pad: 0 };
        }
        params::Site {
            layer: self.site.layer,
            slots: self.site.capacity.slots as u32,
            rank: self.site.capacity.rank as u32,
            parts: self.site.targets.len() as u32,
            head: self.site.ranks_len() as u32,
            first: chunk.first as u32,
            count: chunk.count as u32,
            partials: self.site.partials() as u32,
            part,
        }
    }

    fn pair<'a>(&self, factors: &'a Factors, index: usize) -> Option<&'a Pair> {
        factors.pairs.get(&Place { layer: self.site.layer, target: self.site.targets[index].target })
    }

    /// Writes a slot's factors and the rank table.
    fn fill(&self, gpu: &Gpu, slot: usize, slots: &Slots) {
        let (site, capacity) = (&*self.site, self.site.capacity);
        if slot >= capacity.slots {
            return;
        }
        let factors = slots.get(&slot);
        for (index, target) in site.targets.iter().enumerate() {
            let Some(pair) = factors.and_then(|factors| self.pair(factors, index)) else { continue };
            if pair.rank == 0 {
                continue;
            }
            let row = site.cols.next_multiple_of(4);
            let mut a = vec![0.0; pair.rank * row];
            for (to, from) in a.chunks_exact_mut(row).zip(pair.a.chunks_exact(pair.cols)) {
                to[..pair.cols].copy_from_slice(from);
            }
            self.write(gpu, &self.a, row, (index * capacity.slots + slot) * capacity.rank, &a);
            let mut b = vec![0.0; pair.rows * capacity.rank];
            for (to, from) in b.chunks_exact_mut(capacity.rank).zip(pair.b.chunks_exact(pair.rank)) {
                to[..pair.rank].copy_from_slice(from);
            }
            self.write(gpu, &self.b, 1, site.b_offset(index) + slot * target.rows * capacity.rank, &b);
        }
        let rank = |index: usize, slot: usize| {
            let pair = slots.get(&slot).and_then(|factors| self.pair(factors, index));
            pair.map_or(0.0, |pair| pair.rank as f32)
        };
        let targets = 0..site.targets.len();
        let ranks = targets.flat_map(|index| (0..capacity.slots).map(move |slot| (index, slot)));
        let ranks: Vec<f32> = ranks.map(|(index, slot)| rank(index, slot)).collect();
        for chunk in self.a.iter().chain(&self.b) {
            gpu.queue.write_buffer(&chunk.buffer, 0, bytemuck::cast_slice(&ranks));
        }
    }

    /// Writes consecutive units of `unit` elements, from unit `begin` of the pool on.
    fn write(&self, gpu: &Gpu, chunks: &[Chunk], unit: usize, begin: usize, values: &[f32]) {
        let end = begin + values.len() / unit;
        for chunk in chunks {
            let (start, stop) = (begin.max(chunk.first), end.min(chunk.first + chunk.count));
            if start < stop {
                let offset = (self.site.ranks_len() + (start - chunk.first) * unit) * 4;
                let part = &values[(start - begin) * unit..(stop - begin) * unit];
                gpu.queue.write_buffer(&chunk.buffer, offset as u64, bytemuck::cast_slice(part));
            }
        }
    }
}

/// Buffers for `units` of `unit` elements each, every one behind a rank table.
fn chunks(gpu: &Gpu, label: &str, head: usize, units: usize, unit: usize) -> Result<Vec<Chunk>> {
    let room =
        (usize::try_from(gpu.limits.binding).unwrap_or(usize::MAX) / 4).saturating_sub(head) / unit.max(1);
    if room == 0 {
        let most = gpu.limits.binding;
        return Err(gpu.error(format!("{label}: {} bytes do not fit a binding of {most}", (head + unit) * 4)));
    }
    let chunk = |first: usize| {
        let count = room.min(units - first);
        let buffer = gpu.storage(label, ((head + count * unit) * 4) as u64)?;
        Ok(Chunk { buffer, first, count })
    };
    (0..units).step_by(room).map(chunk).collect()
}
