//! How matrices are stored: dense, or quantized in panels (see [`wattle_kernels_cpu::panels`]).

use std::fmt;

pub use wattle_kernels_cpu::panels::{BLOCK, Bits, Offset, PANEL};

use super::matrix::{Dtype, Part};
use super::quantize::Quant;

/// How a matrix is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// Row-major elements.
    Dense(Dtype),
    /// Quantized.
    Panels(PanelFormat),
}

/// Which codes, scales and offsets a quantized matrix has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PanelFormat {
    /// Of a code.
    pub bits: Bits,
    /// What is added to or taken from codes.
    pub offset: Offset,
    /// Columns that share a scale: a multiple of [`BLOCK`], or `None` for whole rows.
    pub group: Option<usize>,
    /// Element type of the scales.
    pub scale: Dtype,
}

impl From<Dtype> for Format {
    fn from(dtype: Dtype) -> Self {
        Self::Dense(dtype)
    }
}

impl From<PanelFormat> for Format {
    fn from(format: PanelFormat) -> Self {
        Self::Panels(format)
    }
}

/// 8 bits, symmetric, a scale for 32.
pub const Q8_0: PanelFormat =
    PanelFormat { bits: Bits::Eight, offset: Offset::Middle, group: Some(BLOCK), scale: Dtype::F16 };
/// 4 bits, symmetric, a scale for 32.
pub const Q4_0: PanelFormat = PanelFormat { bits: Bits::Four, ..Q8_0 };
/// 4 bits, a minimum and a step for 32.
pub const Q4_1: PanelFormat = PanelFormat { offset: Offset::Minimum, ..Q4_0 };
/// 8 bits, symmetric, a scale for each output channel.
pub const INT8: PanelFormat = PanelFormat { group: None, scale: Dtype::F32, ..Q8_0 };
/// 4 bits, symmetric, a scale for each output channel.
pub const INT4: PanelFormat = PanelFormat { bits: Bits::Four, ..INT8 };

impl PanelFormat {
    /// Columns that share a scale in rows of `cols`.
    pub fn group(&self, cols: usize) -> usize {
        self.group.unwrap_or(cols.next_multiple_of(BLOCK))
    }

    /// Scales of a row.
    pub fn groups(&self, cols: usize) -> usize {
        cols.div_ceil(self.group(cols).max(1))
    }

    /// Bytes of codes, scales and offsets of `rows` rows, filled up to panels; `None` where they overflow.
    pub fn bytes(&self, rows: usize, cols: usize) -> Option<[usize; 3]> {
        let panels = rows.div_ceil(PANEL);
        let codes = panels.checked_mul(cols.div_ceil(BLOCK))?.checked_mul(self.bits.block_bytes())?;
        let scales = panels.checked_mul(self.groups(cols))?.checked_mul(PANEL)?;
        Some([codes, scales.checked_mul(self.scale.size())?, scales.checked_mul(self.offset.size())?])
    }
}

impl Format {
    /// Bits of a row: codes, scales and offsets.
    pub fn row_bits(&self, cols: usize) -> usize {
        match self {
            Self::Dense(dtype) => 8 * cols * dtype.size(),
            Self::Panels(format) => {
                cols * self.element_bits()
                    + 8 * format.groups(cols) * (format.scale.size() + format.offset.size())
            }
        }
    }

    /// Bits of an element, without its share of the scale.
    pub fn element_bits(&self) -> usize {
        match self {
            Self::Dense(dtype) => 8 * dtype.size(),
            Self::Panels(format) if format.bits == Bits::Four => 4,
            Self::Panels(_) => 8,
        }
    }

    /// Whether a part's bytes have the lengths and alignments of this format.
    pub fn fits(&self, part: &Part, cols: usize) -> bool {
        let aligned =
            |bytes: &super::Bytes, size: usize| size < 2 || bytes.as_ref().as_ptr().align_offset(size) == 0;
        let len = |bytes: &super::Bytes| bytes.as_ref().len();
        match (self, &part.scales) {
            (Self::Dense(dtype), None) => {
                let bytes = part.rows.checked_mul(cols).and_then(|n| n.checked_mul(dtype.size()));
                Some(len(&part.data)) == bytes && aligned(&part.data, dtype.size())
            }
            (Self::Panels(format), Some([scales, offsets])) => {
                let group = format.group.is_none_or(|group| group > 0 && group.is_multiple_of(BLOCK));
                group
                    && format.bytes(part.rows, cols) == Some([len(&part.data), len(scales), len(offsets)])
                    && aligned(scales, format.scale.size())
                    && aligned(offsets, format.offset.size())
            }
            _ => false,
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dense(dtype) => write!(f, "{dtype:?}"),
            Self::Panels(format) => match Quant::ALL.iter().find(|quant| quant.layers() == *format) {
                Some(quant) => f.write_str(quant.name()),
                None => {
                    let group = format.group.map_or("row".into(), |group| group.to_string());
                    write!(f, "{}-bit {:?} per {group}", self.element_bits(), format.offset)
                }
            },
        }
    }
}
