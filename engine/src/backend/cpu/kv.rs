//! The KV cache and the states of the sequences.

use wattle_kernels_cpu::State;

use super::memory::Buffer;
use crate::backend::{Capacity, validate};
use crate::error::{Error, Result};
use crate::plan::KvShape;

/// K and V, each f32 \[layers, sequences, context, kv_heads × head_dim\], and one state per sequence.
pub(super) struct KvCache {
    pub shape: KvShape,
    pub capacity: Capacity,
    pub k: Buffer,
    pub v: Buffer,
    pub states: Vec<State>,
}

impl KvCache {
    pub fn new(shape: KvShape, capacity: Capacity, guards: bool) -> Result<Self> {
        let sizes = [shape.layers, capacity.sequences, capacity.context, shape.width()];
        let len = sizes.into_iter().try_fold(1_usize, usize::checked_mul);
        let buffer = |what| Buffer::new(what, len, guards);
        let states = vec![State::default(); capacity.sequences];
        Ok(Self { shape, capacity, k: buffer("the keys of the KV cache")?, v: buffer("its values")?, states })
    }

    /// Elements of one layer.
    fn layer_len(&self) -> usize {
        self.capacity.sequences * self.capacity.context * self.shape.width()
    }

    /// K and V of one layer, and the states.
    pub fn layer_mut(&mut self, layer: usize) -> ([&mut [f32]; 2], &mut [State]) {
        let len = self.layer_len();
        let kv = [&mut self.k, &mut self.v].map(|buffer| &mut buffer.values_mut()[layer * len..][..len]);
        (kv, &mut self.states)
    }

    /// Where positions `0..positions` of a sequence lie in one layer.
    pub fn span(&self, layer: usize, sequence: u32, positions: usize) -> Result<std::ops::Range<usize>> {
        validate::below("layer", layer, self.shape.layers)?;
        validate::below("sequence", sequence as usize, self.capacity.sequences)?;
        validate::below("positions", positions, self.capacity.context + 1)?;
        let width = self.shape.width();
        let start = layer * self.layer_len() + sequence as usize * self.capacity.context * width;
        Ok(start..start + positions * width)
    }

    /// Writes positions from 0 on.
    pub fn import(&mut self, layer: usize, sequence: u32, kv: &[Vec<f32>; 2]) -> Result<()> {
        let width = self.shape.width();
        if kv[0].len() != kv[1].len() || !kv[0].len().is_multiple_of(width) {
            let reason =
                format!("{} and {} elements, expected two of positions × {width}", kv[0].len(), kv[1].len());
            return Err(Error::value("kv", reason));
        }
        let span = self.span(layer, sequence, kv[0].len() / width)?;
        self.k.values_mut()[span.clone()].copy_from_slice(&kv[0]);
        self.v.values_mut()[span].copy_from_slice(&kv[1]);
        Ok(())
    }

    /// Copies positions and state.
    pub fn copy(&mut self, from: u32, to: u32, positions: usize) -> Result<()> {
        for sequence in [from, to] {
            validate::below("sequence", sequence as usize, self.capacity.sequences)?;
        }
        for layer in 0..self.shape.layers {
            let source = self.span(layer, from, positions)?;
            let target = self.span(layer, to, positions)?.start;
            self.k.values_mut().copy_within(source.clone(), target);
            self.v.values_mut().copy_within(source, target);
        }
        self.states[to as usize] = self.states[from as usize].clone();
        Ok(())
    }
}
