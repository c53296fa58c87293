//! LoRA pools on the device: fixed strides, so that adapters come and go without a new bind group.
//!
//! Every buffer of a pool begins with the site's table, so that kernels need one binding for both: per target and slot the
//! rank, and the power of two that the elements of A (of B) are multiplied by.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use half::f16;
use wattle_kernels_cpu::fast::Factor;
use wattle_kernels_cpu::halves;
use wattle_shaders::params;

use super::device::Gpu;
use crate::adapter::{Factors, Pair, Place};
use crate::error::Result;
use crate::plan::{FactorType, Site};

/// The most projections of a site: the length of `Site.part` in `lora.wgsl`.
const MAX_PARTS: usize = 4;

/// Consecutive rows of a pool in one buffer.
pub(super) struct Chunk {
    pub buffer: wgpu::Buffer,
    first: usize,
    count: usize,
}

/// The pools of a site.
pub(super) struct Pool {
    site: Arc<Site>,
    pub factors: FactorType,
    pub a: Vec<Chunk>,
    pub b: Vec<Chunk>,
}

/// What is in the slots.
type Slots = BTreeMap<usize, Arc<Factors>>;

/// An adapter's factors as binary16, by place: A and B, each with what its elements are to be multiplied by.
pub(super) type Halves = BTreeMap<Place, [(Vec<f16>, f32); 2]>;

/// What pools of binary16 are filled with; pools of f32 take factors as they are.
pub(super) fn to_halves(factors: &Factors, _: FactorType) -> Result<Halves> {
    let pair = |(&place, pair): (&Place, &Pair)| (place, [halves(&pair.a), halves(&pair.b)]);
    Ok(factors.pairs().iter().map(pair).collect())
}

/// The pools of all plans.
#[derive(Default)]
pub(super) struct Pools {
    pools: Vec<Arc<Pool>>,
    pub slots: Slots,
    pub bytes: u64,
}

impl Pools {
    /// The pools of a site, made and filled unless another plan has an equal one.
    pub fn of(&mut self, gpu: &Gpu, site: &Arc<Site>, factors: FactorType) -> Result<Arc<Pool>> {
        let same = |pool: &&Arc<Pool>| pool.site == *site && pool.factors == factors;
        if let Some(known) = self.pools.iter().find(same) {
            return Ok(Arc::clone(known));
        }
        let pool = Arc::new(Pool::new(gpu, Arc::clone(site), factors)?);
        self.slots.iter().try_for_each(|(&slot, factors)| pool.fill(gpu, slot, Some(factors)))?;
        self.bytes += pool.a.iter().chain(&pool.b).map(|chunk| chunk.buffer.size()).sum::<u64>();
        self.pools.push(Arc::clone(&pool));
        Ok(pool)
    }

    /// Puts factors, which were checked against all plans, into a slot of all pools, or empties it.
    pub fn set(&mut self, gpu: &Gpu, slot: usize, factors: Option<Arc<Factors>>) -> Result<()> {
        self.pools.iter().try_for_each(|pool| pool.fill(gpu, slot, factors.as_ref()))?;
        match factors {
            Some(factors) => self.slots.insert(slot, factors),
            None => self.slots.remove(&slot),
        };
        gpu.check()
    }
}

impl Pool {
    fn new(gpu: &Gpu, site: Arc<Site>, factors: FactorType) -> Result<Self> {
        if site.targets.len() > MAX_PARTS {
            return Err(
                gpu.error(format!("a LoRA site has {} projections, {MAX_PARTS} fit", site.targets.len()))
            );
        }
        let table = 4 * site.table_words();
        let a = chunks(gpu, "A pool", table, site.a_rows(), site.a_stride() * factors.bytes())?;
        let b = chunks(gpu, "B pool", table, site.b_rows(), site.b_stride() * factors.bytes())?;
        Ok(Self { site, factors, a, b })
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
            head: self.site.table_words() as u32,
            first: chunk.first as u32,
            count: chunk.count as u32,
            partials: self.site.partials() as u32,
            part,
        }
    }

    /// Writes a slot's factors and its entries of the tables.
    fn fill(&self, gpu: &Gpu, slot: usize, factors: Option<&Arc<Factors>>) -> Result<()> {
        let (site, capacity) = (&*self.site, self.site.capacity);
        if slot >= capacity.slots {
            return Ok(());
        }
        let halves = factors.filter(|_| self.factors == FactorType::F16);
        let halves = halves.map(|factors| factors.laid_out(self.factors, to_halves)).transpose()?;
        for (index, target) in site.targets.iter().enumerate() {
            let entry = index * capacity.slots + slot;
            let place = Place { layer: site.layer, target: target.target };
            let pair = factors.and_then(|factors| factors.pairs().get(&place)).filter(|pair| pair.rank > 0);
            let (rank, scales) = match pair {
                None => (0, [1.0; 2]),
                Some(pair) => {
                    let [a, b] = match halves.as_ref().and_then(|halves| halves.get(&place)) {
                        Some([(a, a_scale), (b, b_scale)]) => {
                            [Factor::F16(a, *a_scale), Factor::F16(b, *b_scale)]
                        }
                        None => [Factor::F32(&pair.a), Factor::F32(&pair.b)],
                    };
                    let (first_a, first_b) =
                        (entry * capacity.rank, site.b_offset(index) + slot * target.rows);
                    let a = self.put(gpu, &self.a, first_a, a, [pair.cols, site.a_stride()]);
                    let b = self.put(gpu, &self.b, first_b, b, [pair.rank, site.b_stride()]);
                    (pair.rank as u32, [a, b])
                }
            };
            for (chunks, scale) in [&self.a, &self.b].into_iter().zip(scales) {
                let words: [u32; 2] = [rank, f32::to_bits(scale)];
                let offset = (entry * size_of_val(&words)) as u64;
                for chunk in chunks {
                    gpu.queue.write_buffer(&chunk.buffer, offset, bytemuck::bytes_of(&words));
                }
            }
        }
        Ok(())
    }

    /// Writes rows of so many values, a stride apart, from row `begin` of the pool on; what they are to be multiplied by.
    fn put(&self, gpu: &Gpu, chunks: &[Chunk], begin: usize, values: Factor, row: [usize; 2]) -> f32 {
        match values {
            Factor::F32(values) => {
                self.write(gpu, chunks, begin, &padded(values, 0.0, row), row[1]);
                1.0
            }
            Factor::F16(values, scale) => {
                self.write(gpu, chunks, begin, &padded(values, f16::ZERO, row), row[1]);
                scale
            }
        }
    }

    /// Writes consecutive rows of `stride` elements from row `begin` of the pool on.
    fn write<T: bytemuck::NoUninit>(
        &self,
        gpu: &Gpu,
        chunks: &[Chunk],
        begin: usize,
        rows: &[T],
        stride: usize,
    ) {
        let end = begin + rows.len() / stride;
        for chunk in chunks {
            let (start, stop) = (begin.max(chunk.first), end.min(chunk.first + chunk.count));
            if start < stop {
                // Rows are whole words, as the queue wants them.
                let offset = 4 * self.site.table_words() + (start - chunk.first) * stride * size_of::<T>();
                let part = &rows[(start - begin) * stride..(stop - begin) * stride];
                gpu.queue.write_buffer(&chunk.buffer, offset as u64, bytemuck::cast_slice(part));
            }
        }
    }
}

/// Rows of `len` values as rows of `stride`, with `zero` at their ends.
fn padded<T: Copy>(values: &[T], zero: T, [len, stride]: [usize; 2]) -> Cow<'_, [T]> {
    if len == stride {
        return Cow::Borrowed(values);
    }
    let mut rows = vec![zero; values.len() / len * stride];
    for (to, from) in rows.chunks_exact_mut(stride).zip(values.chunks_exact(len)) {
        to[..len].copy_from_slice(from);
    }
    Cow::Owned(rows)
}

/// Buffers for so many rows of `row` bytes, every one behind a table.
fn chunks(gpu: &Gpu, label: &str, table: usize, rows: usize, row: usize) -> Result<Vec<Chunk>> {
    let room = usize::try_from(gpu.limits.binding).unwrap_or(usize::MAX).saturating_sub(table) / row.max(1);
    if room == 0 {
        let most = gpu.limits.binding;
        return Err(gpu.error(format!("{label}: {} bytes do not fit a binding of {most}", table + row)));
    }
    let chunk = |first: usize| {
        let count = room.min(rows - first);
        let buffer = gpu.storage(label, (table + count * row) as u64)?;
        Ok(Chunk { buffer, first, count })
    };
    (0..rows).step_by(room).map(chunk).collect()
}
