//! Weights as they are kept: byte ranges of mapped files (or of owned memory), never converted on load.

use std::fmt;
use std::sync::Arc;

use wattle_kernels_cpu::ColumnOrder;

use super::format::{Format, PanelFormat};

/// Element type of stored weights and factors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// bfloat16: the upper half of a binary32.
    Bf16,
}

impl Dtype {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

/// A range of shared bytes: of a mapped file, or of a buffer that was made at load.
///
/// The bytes of weights are aligned to their element: the loader copies what a file misaligns.
#[derive(Clone)]
pub struct Bytes {
    owner: Arc<dyn AsRef<[u8]> + Send + Sync>,
    start: usize,
    len: usize,
}

impl Bytes {
    /// All bytes of `owner`.
    pub fn new(owner: impl AsRef<[u8]> + Send + Sync + 'static) -> Self {
        let len = owner.as_ref().len();
        Self { owner: Arc::new(owner), start: 0, len }
    }

    /// The bytes `start..start + len` of these, or `None` when they end earlier.
    pub fn slice(&self, start: usize, len: usize) -> Option<Self> {
        let end = start.checked_add(len)?;
        (end <= self.len).then(|| Self { owner: Arc::clone(&self.owner), start: self.start + start, len })
    }
}

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        &(*self.owner).as_ref()[self.start..self.start + self.len]
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.len)
    }
}

/// Consecutive rows of a [`Matrix`].
#[derive(Clone, Debug)]
pub struct Part {
    /// How many rows.
    pub rows: usize,
    /// Dense: the elements, row-major. Panels: the codes. Aligned to the element.
    pub data: Bytes,
    /// Panels: scales and offsets, aligned to theirs. Dense: nothing.
    pub scales: Option<[Bytes; 2]>,
}

/// A stored matrix \[rows, cols\]: `rows` outputs of `cols` inputs each.
///
/// It is a list of parts so that fused projections need no copy: a fused matrix lists its parts' rows in order.
#[derive(Clone, Debug)]
pub struct Matrix {
    /// The tensor's name in the checkpoint (joined with `+` for fused ones).
    pub name: String,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    /// How all parts are stored.
    pub format: Format,
    /// The rows, in order; at least one part.
    pub parts: Vec<Part>,
    /// Which input each stored column multiplies, where that is not the one of the same index; never of a dense
    /// matrix.
    pub order: Option<Arc<ColumnOrder>>,
}

impl Matrix {
    /// A matrix of one part; `None` unless `data` has exactly `rows × cols` aligned elements.
    pub fn new(name: impl Into<String>, rows: usize, cols: usize, dtype: Dtype, data: Bytes) -> Option<Self> {
        Self::of_part(name.into(), cols, Format::Dense(dtype), Part { rows, data, scales: None })
    }

    /// A quantized matrix; `None` unless codes, scales and offsets have the lengths and alignments of `format`.
    pub fn panels(
        name: impl Into<String>,
        rows: usize,
        cols: usize,
        format: PanelFormat,
        data: Bytes,
        scales: [Bytes; 2],
    ) -> Option<Self> {
        let part = Part { rows, data, scales: Some(scales) };
        Self::of_part(name.into(), cols, Format::Panels(format), part)
    }

    fn of_part(name: String, cols: usize, format: Format, part: Part) -> Option<Self> {
        let fits = format.fits(&part, cols);
        fits.then(|| Self { name, rows: part.rows, cols, format, parts: vec![part], order: None })
    }

    /// A matrix of f32 values, for tests and benches.
    pub fn from_f32(name: impl Into<String>, rows: usize, cols: usize, values: &[f32]) -> Option<Self> {
        Self::new(name, rows, cols, Dtype::F32, Bytes::new(AlignedF32(values.to_vec())))
    }

    /// Whether one launch can multiply both with an input: columns, their order and formats agree.
    pub fn alike(&self, other: &Self) -> bool {
        (self.cols, self.format, &self.order) == (other.cols, other.format, &other.order)
    }

    /// These matrices below each other; `None` when there is none, or columns, their order or formats differ.
    pub fn stack(matrices: &[&Self]) -> Option<Self> {
        let first = *matrices.first()?;
        if !matrices.iter().all(|matrix| matrix.alike(first)) {
            return None;
        }
        let names: Vec<_> = matrices.iter().map(|m| m.name.as_str()).collect();
        Some(Self {
            name: names.join("+"),
            rows: matrices.iter().map(|m| m.rows).sum(),
            cols: first.cols,
            format: first.format,
            parts: matrices.iter().flat_map(|m| m.parts.iter().cloned()).collect(),
            order: first.order.clone(),
        })
    }

    /// Bits of all elements, scales and offsets, without what fills panels up.
    pub fn bits(&self) -> usize {
        self.rows * self.format.row_bits(self.cols)
    }

    /// Bytes of all elements, scales and offsets, without what fills panels up.
    pub fn bytes(&self) -> usize {
        self.bits().div_ceil(8)
    }
}

/// A small vector (bias, norm weight), kept as f32.
#[derive(Clone, Debug, PartialEq)]
pub struct Vector {
    /// The tensor's name in the checkpoint.
    pub name: String,
    /// Its values.
    pub values: Vec<f32>,
}

/// f32 values as an owner of [`Bytes`]: unlike a `Vec<u8>`, aligned for f32.
struct AlignedF32(Vec<f32>);

impl AsRef<[u8]> for AlignedF32 {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}
