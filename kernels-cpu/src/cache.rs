//! Where the KV cache has its elements on the CPU, and what they are stored as.

use half::f16;
use wattle_shaders::PAGE;

use crate::{Read, Write};

/// Positions of a panel of keys.
pub const POSITIONS: usize = 16;

/// What keys and values are stored as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum KvType {
    /// IEEE binary32.
    #[default]
    F32,
    /// IEEE binary16, to the nearest; what is larger than 65504 becomes that.
    F16,
    /// Signed bytes c = round(x / s), from −127 to 127, s = max |x| / 127 being an f32 for each position and head. Off
    /// by at most s / 2.
    Q8,
}

impl KvType {
    /// Bytes of an element.
    pub fn element_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
            Self::Q8 => 1,
        }
    }

    /// Bytes beside the elements, for each position and head.
    pub fn scale_bytes(self) -> usize {
        if self == Self::Q8 { 4 } else { 0 }
    }
}

/// The scale of a head's elements: 0 for zeros, NaN where one is not finite.
pub fn scale(values: &[f32]) -> f32 {
    let finite = values.iter().all(|x| x.is_finite());
    if finite { values.iter().fold(0.0_f32, |max, x| max.max(x.abs())) / 127.0 } else { f32::NAN }
}

/// The code of an element, as a whole number.
pub fn code(x: f32, scale: f32) -> f32 {
    // A maximum below the smallest number times 127 has no scale.
    if scale == 0.0 { 0.0 } else { (x / scale).round_ties_even().clamp(-127.0, 127.0) }
}

/// As binary16.
pub fn half(x: f32) -> f16 {
    f16::from_f32(x.clamp(f16::MIN.to_f32(), f16::MAX.to_f32()))
}

/// How K and V of one layer lie: \[pages, kv_heads\] blocks of [`PAGE`] positions, each so that attention reads it from
/// beginning to end. Keys are panels of 16 positions, \[4, head_dim, 16\], because scores of 16 positions are summed side
/// by side; values are \[64, head_dim\]; scales \[64\].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout<'a> {
    /// Key and value heads.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// \[sequences, stride\]: the pages that a sequence has, in the order of its positions.
    pub tables: &'a [u32],
    /// Pages that a table has room for.
    pub stride: usize,
}

impl<'a> Layout<'a> {
    /// Elements of a block.
    pub fn block_len(&self) -> usize {
        PAGE * self.head_dim
    }

    /// The first pages of a sequence.
    pub fn table(&self, sequence: u32, pages: usize) -> &'a [u32] {
        &self.tables[sequence as usize * self.stride..][..pages]
    }

    /// The block that has a head's elements at a position of a sequence.
    pub fn block(&self, sequence: u32, kv_head: usize, position: usize) -> usize {
        let page = self.tables[sequence as usize * self.stride + position / PAGE];
        page as usize * self.kv_heads + kv_head
    }

    /// Where element `i` of a position's key is.
    pub fn key(&self, block: usize, position: usize, i: usize) -> usize {
        let (panel, lane) = (position % PAGE / POSITIONS, position % POSITIONS);
        block * self.block_len() + (panel * self.head_dim + i) * POSITIONS + lane
    }

    /// Where element `i` of a position's value is.
    pub fn value(&self, block: usize, position: usize, i: usize) -> usize {
        block * self.block_len() + position % PAGE * self.head_dim + i
    }

    /// Where the scale of a position's key or value is.
    pub fn scale(&self, block: usize, position: usize) -> usize {
        block * PAGE + position % PAGE
    }
}

/// K and V of one layer, as they are stored: keys and values each.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "the variants are KvType's")]
pub enum Kv<'a> {
    F32([&'a [f32]; 2]),
    F16([&'a [f16]; 2]),
    Q8 { codes: [&'a [i8]; 2], scales: [&'a [f32]; 2] },
}

/// K and V of one layer, to write.
#[derive(Debug)]
#[allow(missing_docs, reason = "the variants are KvType's")]
pub enum KvMut<'a> {
    F32([&'a mut [f32]; 2]),
    F16([&'a mut [f16]; 2]),
    Q8 { codes: [&'a mut [i8]; 2], scales: [&'a mut [f32]; 2] },
}

impl KvMut<'_> {
    /// To read.
    pub fn as_kv(&self) -> Kv<'_> {
        match self {
            Self::F32(values) => Kv::F32(values.each_ref().map(|side| &**side)),
            Self::F16(values) => Kv::F16(values.each_ref().map(|side| &**side)),
            Self::Q8 { codes, scales } => Kv::Q8 {
                codes: codes.each_ref().map(|side| &**side),
                scales: scales.each_ref().map(|side| &**side),
            },
        }
    }
}

/// Keys or values of one layer, as twins read them.
#[derive(Clone, Copy)]
pub struct Side<'a> {
    /// Elements, or codes.
    pub elements: &'a dyn Read,
    /// Of codes.
    pub scales: Option<&'a dyn Read>,
}

impl Side<'_> {
    /// What the elements are multiplied by.
    pub fn scale(&self, at: usize) -> f64 {
        self.scales.map_or(1.0, |scales| f64::from(scales.get(at)))
    }
}

/// K and V of one layer, as twins read them.
#[derive(Clone, Copy)]
pub struct Cached<'a> {
    /// Of both.
    pub layout: Layout<'a>,
    /// Keys.
    pub k: Side<'a>,
    /// Values.
    pub v: Side<'a>,
}

/// Keys or values of one layer, as twins write them.
pub struct SideMut<'a> {
    /// Elements, or codes.
    pub elements: &'a mut dyn Write,
    /// Of codes.
    pub scales: Option<&'a mut dyn Write>,
}

impl SideMut<'_> {
    fn put(&mut self, values: &[f32], at: impl Fn(usize) -> usize, scale_at: usize) {
        let scale = self.scales.as_mut().map(|scales| {
            let scale = scale(values);
            scales.set(scale_at, scale);
            scale
        });
        for (i, &x) in values.iter().enumerate() {
            self.elements.set(at(i), scale.map_or(x, |scale| code(x, scale)));
        }
    }
}

/// K and V of one layer, as twins write them.
pub struct Cache<'a> {
    /// Of both.
    pub layout: Layout<'a>,
    /// Keys.
    pub k: SideMut<'a>,
    /// Values.
    pub v: SideMut<'a>,
}

impl Cache<'_> {
    /// Writes the key of a head at a position of a sequence.
    pub fn put_key(&mut self, sequence: u32, head: usize, position: usize, key: &[f32]) {
        let (layout, block) = (self.layout, self.layout.block(sequence, head, position));
        self.k.put(key, |i| layout.key(block, position, i), layout.scale(block, position));
    }

    /// Writes the value.
    pub fn put_value(&mut self, sequence: u32, head: usize, position: usize, value: &[f32]) {
        let (layout, block) = (self.layout, self.layout.block(sequence, head, position));
        self.v.put(value, |i| layout.value(block, position, i), layout.scale(block, position));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_has_a_place_of_its_own() {
        let tables = [3, 0, 4, 1, 2, 5];
        let layout = Layout { kv_heads: 3, head_dim: 5, tables: &tables, stride: 3 };
        let len = 6 * 3 * layout.block_len();
        let mut seen = [vec![false; len], vec![false; len], vec![false; len / 5]];
        for (sequence, head) in [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)] {
            for position in 0..3 * PAGE {
                let block = layout.block(sequence, head, position);
                let scale = layout.scale(block, position);
                assert!(!std::mem::replace(&mut seen[2][scale], true), "{position}");
                for i in 0..5 {
                    let places = [layout.key(block, position, i), layout.value(block, position, i)];
                    for (seen, at) in seen.iter_mut().zip(places) {
                        assert!(!std::mem::replace(&mut seen[at], true), "{position} {i}");
                    }
                }
            }
        }
        assert!(seen.iter().flatten().all(|&seen| seen), "a place that nobody has");
    }

    #[test]
    fn codes_are_off_by_half_a_step_at_most() {
        let values: Vec<f32> = (0..100).map(|i| (i as f32 - 37.3) * 0.11).collect();
        let step = scale(&values);
        for &x in &values {
            assert!((code(x, step) * step - x).abs() <= step * 0.500_01, "{x}");
        }
        assert_eq!((scale(&[0.0; 3]), code(0.0, 0.0)), (0.0, 0.0));
        assert!(scale(&[1.0, f32::NAN]).is_nan() && scale(&[f32::INFINITY, 1.0]).is_nan());
        assert_eq!((half(1e9).to_f32(), half(-1e9).to_f32()), (65504.0, -65504.0));
        assert!(half(f32::NAN).is_nan());
    }
}
