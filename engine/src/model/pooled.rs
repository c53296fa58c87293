//! Quantized random weights that are cut from one random block, each a vector further than the one before.
//!
//! A device that copies its weights then holds as many different bytes as the model has, while the host makes and keeps
//! hardly more than the largest matrix.

use std::collections::BTreeMap;

use super::aligned::AlignedBytes;
use super::format::{Bits, Offset, PanelFormat};
use super::matrix::{Bytes, Dtype, Matrix, Vector};
use super::quantize::Quant;
use super::shapes::{Pattern, Random};
use super::stored::format_of;
use super::weights::{Order, Source};
use crate::error::{Error, Result};

/// How far apart two cuts begin \[bytes\]: aligned for every element and every vector load.
const STEP: usize = 64;
/// How many cuts a block has room for beyond its length.
const CUTS: usize = 1024;

/// A random block, and where the next cut begins.
struct Block {
    bytes: Bytes,
    next: usize,
}

/// A source of random quantized matrices. What stays dense under a format is [`Random`]'s.
pub(super) struct Pooled {
    quant: Quant,
    dense: Random,
    blocks: BTreeMap<Pattern, Block>,
}

impl Pooled {
    pub(super) fn new(quant: Quant, dense: Dtype, seed: u64) -> Self {
        Self { quant, dense: Random::new(dense, seed), blocks: BTreeMap::new() }
    }

    /// `len` bytes of a block of this pattern; the same bytes begin no other matrix.
    fn cut(&mut self, pattern: Pattern, len: usize) -> Option<Bytes> {
        if let Some(block) = self.blocks.get_mut(&pattern)
            && let Some(bytes) = block.bytes.slice(block.next, len)
        {
            block.next += STEP;
            return Some(bytes);
        }
        let mut data = AlignedBytes::zeroed(len.checked_add(STEP * CUTS)?)?;
        self.dense.fill(&pattern, data.as_mut());
        let bytes = Bytes::new(data);
        let first = bytes.slice(0, len);
        self.blocks.insert(pattern, Block { bytes, next: STEP });
        first
    }

    fn panels(&mut self, name: &str, rows: usize, cols: usize, format: PanelFormat) -> Option<Matrix> {
        let [codes, scales, offsets] = format.bytes(rows, cols)?;
        // Where a minimum is of a scale's size: (0² + … + 15²) / 16, (−8² + … + 7²) / 16, and the same for 8 bits.
        let square = match (format.bits, format.offset) {
            (Bits::Four, Offset::Minimum) => 77.5,
            (Bits::Four, _) => 21.5,
            (Bits::Eight, _) => 5461.5,
        };
        let scale = |dtype| Pattern::near(dtype, cols as f64 * square);
        let codes = self.cut(Pattern::ALL, codes)?;
        let offsets = match format.offset {
            Offset::Minimum => self.cut(scale(Dtype::F16), offsets)?,
            _ => Bytes::new([]),
        };
        let scales = self.cut(scale(format.scale), scales)?;
        Matrix::panels(name, rows, cols, format, codes, [scales, offsets])
    }
}

impl Source for Pooled {
    fn has(&self, _name: &str) -> bool {
        false
    }

    fn matrix(&mut self, name: &str, rows: usize, cols: usize, order: Order) -> Result<Matrix> {
        let Some(format) = format_of(name, self.quant) else {
            return self.dense.matrix(name, rows, cols, order);
        };
        let no_memory = || Error::value("shape", format!("no memory for {name}, [{rows}, {cols}]"));
        self.panels(name, rows, cols, format).ok_or_else(no_memory)
    }

    fn vector(&mut self, name: &str, len: usize) -> Result<Vector> {
        self.dense.vector(name, len)
    }
}
