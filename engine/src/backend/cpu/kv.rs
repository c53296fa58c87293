//! The KV cache and the states of the sequences.

use half::f16;
use wattle_kernels_cpu::State;
use wattle_kernels_cpu::cache::{Kv, KvMut, KvType, Layout};
use wattle_kernels_cpu::fast::kv_write;
use wattle_shaders::Row;

use super::memory::Buffer;
use crate::backend::pages::PageTables;
use crate::backend::{Capacity, validate};
use crate::cache::PAGE;
use crate::error::{Error, Result};
use crate::plan::KvShape;

/// Keys and values of all layers.
enum Store {
    F32([Buffer<f32>; 2]),
    F16([Buffer<f16>; 2]),
    Q8 { codes: [Buffer<i8>; 2], scales: [Buffer<f32>; 2] },
}

/// K and V of all layers, each layer as [`Layout`] says, and one state per sequence.
pub(super) struct KvCache {
    pub shape: KvShape,
    pub capacity: Capacity,
    pub tables: PageTables,
    pub states: Vec<State>,
    store: Store,
}

/// The part of both sides that a layer has.
fn layer<T: bytemuck::Pod>(sides: &mut [Buffer<T>; 2], layer: usize, len: usize) -> [&mut [T]; 2] {
    sides.each_mut().map(|side| &mut side.values_mut()[layer * len..][..len])
}

fn copy<T: bytemuck::Pod>(sides: &mut [Buffer<T>; 2], from: usize, to: usize, len: usize) {
    sides.iter_mut().for_each(|side| side.values_mut().copy_within(from..from + len, to));
}

impl KvCache {
    pub fn new(shape: KvShape, capacity: Capacity, guards: bool) -> Result<Self> {
        let sizes = [shape.layers, capacity.pages, shape.kv_heads, PAGE];
        let positions = sizes.into_iter().try_fold(1, usize::checked_mul);
        let len = positions.and_then(|len| len.checked_mul(shape.head_dim));
        let names = ["the keys of the KV cache", "the values of the KV cache"];
        let [k, v] = names;
        let store = match shape.store {
            KvType::F32 => Store::F32([Buffer::new(k, len, guards)?, Buffer::new(v, len, guards)?]),
            KvType::F16 => Store::F16([Buffer::new(k, len, guards)?, Buffer::new(v, len, guards)?]),
            KvType::Q8 => {
                let codes = [Buffer::new(k, len, guards)?, Buffer::new(v, len, guards)?];
                let scales = [Buffer::new(k, positions, guards)?, Buffer::new(v, positions, guards)?];
                Store::Q8 { codes, scales }
            }
        };
        let tables = PageTables::new(&capacity)?;
        let states = vec![State::default(); capacity.sequences];
        Ok(Self { shape, capacity, tables, states, store })
    }

    /// Positions × heads of one layer.
    fn layer_positions(&self) -> usize {
        self.capacity.pages * self.shape.kv_heads * PAGE
    }

    /// K and V of one layer, where they lie, and the states.
    pub fn layer_mut(&mut self, index: usize) -> (KvMut<'_>, Layout<'_>, &mut [State]) {
        let KvShape { kv_heads, head_dim, .. } = self.shape;
        let positions = self.layer_positions();
        let len = positions * head_dim;
        let kv = match &mut self.store {
            Store::F32(sides) => KvMut::F32(layer(sides, index, len)),
            Store::F16(sides) => KvMut::F16(layer(sides, index, len)),
            Store::Q8 { codes, scales } => {
                KvMut::Q8 { codes: layer(codes, index, len), scales: layer(scales, index, positions) }
            }
        };
        let (tables, stride) = (self.tables.all(), self.tables.stride());
        (kv, Layout { kv_heads, head_dim, tables, stride }, &mut self.states)
    }

    fn check(&self, layer: usize, sequence: u32, positions: usize) -> Result<()> {
        validate::below("layer", layer, self.shape.layers)?;
        validate::below("positions", positions, self.capacity.context + 1)?;
        self.tables.check(sequence, positions)
    }

    /// K and V of the first positions, \[positions, kv_heads × head_dim\] each.
    pub fn export(&mut self, layer: usize, sequence: u32, positions: usize) -> Result<[Vec<f32>; 2]> {
        self.check(layer, sequence, positions)?;
        let (kv, layout, _) = self.layer_mut(layer);
        let mut sides = [Vec::new(), Vec::new()];
        for (position, head) in (0..positions).flat_map(|p| (0..layout.kv_heads).map(move |head| (p, head))) {
            let block = layout.block(sequence, head, position);
            let scale = layout.scale(block, position);
            for i in 0..layout.head_dim {
                let places = [layout.key(block, position, i), layout.value(block, position, i)];
                for (side, (to, at)) in sides.iter_mut().zip(places).enumerate() {
                    to.push(element(&kv.as_kv(), side, at, scale));
                }
            }
        }
        Ok(sides)
    }

    /// Writes positions from 0 on.
    pub fn import(&mut self, layer: usize, sequence: u32, [k, v]: &[Vec<f32>; 2]) -> Result<()> {
        let width = self.shape.width();
        if k.len() != v.len() || !k.len().is_multiple_of(width) {
            let reason = format!("{} and {} elements, expected two of positions × {width}", k.len(), v.len());
            return Err(Error::value("kv", reason));
        }
        let positions = k.len() / width;
        self.check(layer, sequence, positions)?;
        let rows: Vec<Row> = (0..positions).map(|p| Row::prompt(0, p as u32, sequence)).collect();
        let (kv, layout, _) = self.layer_mut(layer);
        kv_write(&rows, layout, k, v, kv);
        Ok(())
    }

    /// Copies a page, in all layers.
    pub fn copy_page(&mut self, from: u32, to: u32) -> Result<()> {
        self.tables.check_page(from)?;
        self.tables.check_page(to)?;
        let (per_page, per_layer) = (self.shape.kv_heads * PAGE, self.layer_positions());
        let dim = self.shape.head_dim;
        for layer in 0..self.shape.layers {
            let [from, to] = [from, to].map(|page| layer * per_layer + page as usize * per_page);
            match &mut self.store {
                Store::F32(sides) => copy(sides, from * dim, to * dim, per_page * dim),
                Store::F16(sides) => copy(sides, from * dim, to * dim, per_page * dim),
                Store::Q8 { codes, scales } => {
                    copy(codes, from * dim, to * dim, per_page * dim);
                    copy(scales, from, to, per_page);
                }
            }
        }
        Ok(())
    }

    /// Bytes of K and V.
    pub fn bytes(&self) -> u64 {
        let elements = self.shape.layers * self.layer_positions();
        let store = self.shape.store;
        2 * elements as u64 * (self.shape.head_dim * store.element_bytes() + store.scale_bytes()) as u64
    }

    /// Whether no guard word was overwritten, of keys and of values.
    pub fn intact(&self) -> [bool; 2] {
        match &self.store {
            Store::F32(sides) => sides.each_ref().map(Buffer::intact),
            Store::F16(sides) => sides.each_ref().map(Buffer::intact),
            Store::Q8 { codes, scales } => [0, 1].map(|side| codes[side].intact() && scales[side].intact()),
        }
    }
}

/// An element of the keys (side 0) or values (1).
fn element(kv: &Kv, side: usize, at: usize, scale: usize) -> f32 {
    match kv {
        Kv::F32(sides) => sides[side][at],
        Kv::F16(sides) => sides[side][at].to_f32(),
        Kv::Q8 { codes, scales } => f32::from(codes[side][at]) * scales[side][scale],
    }
}
