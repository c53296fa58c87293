//! Keys and values as they lie on the device: see `shared/cache.wgsl`.

use std::ops::Range;

use half::f16;
use wattle_kernels_cpu::cache::{code, half, scale};
use wattle_shaders::params::CHUNK;

use crate::cache::PAGE;
use crate::plan::{KvShape, KvType};

/// Bytes of one position's elements of a head: padded to four.
pub(super) fn elements_bytes(shape: &KvShape) -> usize {
    shape.head_dim.next_multiple_of(4) * shape.store.element_bytes()
}

/// Bytes of a page's keys (or values) of a head: its elements, then its scales.
pub(super) fn block_bytes(shape: &KvShape) -> usize {
    PAGE * (elements_bytes(shape) + shape.store.scale_bytes())
}

/// Bytes of the keys and values of a chunk of attention: of all heads and layers.
pub(super) fn chunk_bytes(shape: &KvShape) -> u64 {
    (2 * shape.layers * shape.kv_heads * CHUNK / PAGE * block_bytes(shape)) as u64
}

/// Where a block has the elements of its first positions, and where their scales; the latter empty without scales.
pub(super) fn ranges(shape: &KvShape, positions: usize) -> [Range<usize>; 2] {
    let (elements, scales) = (elements_bytes(shape), PAGE * elements_bytes(shape));
    [0..positions * elements, scales..scales + positions * shape.store.scale_bytes()]
}

/// A head's elements, padded with zeros, and its scale: as they are stored.
pub(super) fn encode(shape: &KvShape, values: &[f32]) -> [Vec<u8>; 2] {
    let padded = values.iter().copied().chain(std::iter::repeat(0.0)).take(values.len().next_multiple_of(4));
    match shape.store {
        KvType::F32 => [padded.flat_map(f32::to_ne_bytes).collect(), Vec::new()],
        KvType::F16 => [padded.flat_map(|x| half(x).to_ne_bytes()).collect(), Vec::new()],
        KvType::Q8 => {
            let unit = scale(values);
            [padded.map(|x| code(x, unit) as i8 as u8).collect(), unit.to_ne_bytes().to_vec()]
        }
    }
}

/// The inverse, of one position.
pub(super) fn decode(shape: &KvShape, elements: &[u8], scale: &[u8]) -> Vec<f32> {
    let floats = |bytes: &[u8]| bytes.as_chunks::<4>().0.iter().map(|b| f32::from_ne_bytes(*b)).collect();
    let mut values: Vec<f32> = match shape.store {
        KvType::F32 => floats(elements),
        KvType::F16 => elements.as_chunks::<2>().0.iter().map(|b| f16::from_ne_bytes(*b).to_f32()).collect(),
        KvType::Q8 => {
            let unit: Vec<f32> = floats(scale);
            let unit = unit.first().copied().unwrap_or(0.0);
            elements.iter().map(|&byte| f32::from(byte as i8) * unit).collect()
        }
    };
    values.truncate(shape.head_dim);
    values
}
