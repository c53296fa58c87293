//! The KV cache and the states of the sequences.

use wattle_kernels_cpu::State;
use wattle_kernels_cpu::cache::{Layout, POSITIONS};

use super::memory::Buffer;
use crate::backend::{Capacity, validate};
use crate::error::{Error, Result};
use crate::plan::KvShape;

/// K and V of all layers, each layer as [`Layout`] says, and one state per sequence.
pub(super) struct KvCache {
    pub shape: KvShape,
    pub capacity: Capacity,
    pub layout: Layout,
    pub k: Buffer,
    pub v: Buffer,
    pub states: Vec<State>,
}

impl KvCache {
    pub fn new(shape: KvShape, capacity: Capacity, guards: bool) -> Result<Self> {
        let KvShape { kv_heads, head_dim, .. } = shape;
        let layout = Layout { kv_heads, head_dim, context: capacity.context };
        let context = capacity.context.checked_next_multiple_of(POSITIONS);
        let sizes = [shape.layers, capacity.sequences, kv_heads, head_dim];
        let len = sizes.into_iter().try_fold(context.unwrap_or(usize::MAX), usize::checked_mul);
        let buffer = |what| Buffer::new(what, len, guards);
        let states = vec![State::default(); capacity.sequences];
        let (k, v) = (buffer("the keys of the KV cache")?, buffer("its values")?);
        Ok(Self { shape, capacity, layout, k, v, states })
    }

    /// Elements of one layer.
    fn layer_len(&self) -> usize {
        self.capacity.sequences * self.layout.sequence_len()
    }

    /// K and V of one layer, and the states.
    pub fn layer_mut(&mut self, layer: usize) -> ([&mut [f32]; 2], &mut [State]) {
        let len = self.layer_len();
        let kv = [&mut self.k, &mut self.v].map(|buffer| &mut buffer.values_mut()[layer * len..][..len]);
        (kv, &mut self.states)
    }

    fn check(&self, layer: usize, sequence: u32, positions: usize) -> Result<()> {
        validate::below("layer", layer, self.shape.layers)?;
        validate::below("sequence", sequence as usize, self.capacity.sequences)?;
        validate::below("positions", positions, self.capacity.context + 1)
    }

    /// Where the first positions of a sequence have their elements in the order \[positions, kv_heads × head_dim\]: a
    /// key's and a value's.
    fn places(
        &self,
        layer: usize,
        sequence: u32,
        positions: usize,
    ) -> impl Iterator<Item = (usize, usize)> + use<> {
        let (layout, start) = (self.layout, layer * self.layer_len());
        (0..positions).flat_map(move |position| {
            (0..layout.kv_heads).flat_map(move |head| {
                let head = start + layout.head(sequence, head);
                let place = move |i| (head + layout.key(position, i), head + layout.value(position, i));
                (0..layout.head_dim).map(place)
            })
        })
    }

    /// K and V of the first positions, \[positions, kv_heads × head_dim\] each.
    pub fn export(&self, layer: usize, sequence: u32, positions: usize) -> Result<[Vec<f32>; 2]> {
        self.check(layer, sequence, positions)?;
        let (k, v) = (self.k.values(), self.v.values());
        let (k, v) = self.places(layer, sequence, positions).map(|(key, value)| (k[key], v[value])).unzip();
        Ok([k, v])
    }

    /// Writes positions from 0 on.
    pub fn import(&mut self, layer: usize, sequence: u32, [k, v]: &[Vec<f32>; 2]) -> Result<()> {
        let width = self.shape.width();
        if k.len() != v.len() || !k.len().is_multiple_of(width) {
            let reason = format!("{} and {} elements, expected two of positions × {width}", k.len(), v.len());
            return Err(Error::value("kv", reason));
        }
        self.check(layer, sequence, k.len() / width)?;
        let places = self.places(layer, sequence, k.len() / width);
        let (to_k, to_v) = (self.k.values_mut(), self.v.values_mut());
        for ((key, value), (k, v)) in places.zip(k.iter().zip(v)) {
            (to_k[key], to_v[value]) = (*k, *v);
        }
        Ok(())
    }

    /// Copies positions and state.
    pub fn copy(&mut self, from: u32, to: u32, positions: usize) -> Result<()> {
        for sequence in [from, to] {
            self.check(0, sequence, positions)?;
        }
        let whole = positions.next_multiple_of(POSITIONS) * self.layout.head_dim;
        for layer in 0..self.shape.layers {
            for head in 0..self.shape.kv_heads {
                let [source, target] =
                    [from, to].map(|sequence| layer * self.layer_len() + self.layout.head(sequence, head));
                for buffer in [&mut self.k, &mut self.v] {
                    buffer.values_mut().copy_within(source..source + whole, target);
                }
            }
        }
        self.states[to as usize] = self.states[from as usize].clone();
        Ok(())
    }
}
