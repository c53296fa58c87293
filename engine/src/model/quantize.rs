//! Dense matrices → quantized ones.
//!
//! Every row is divided into the format's groups, and each group rounded by itself. With w the group's elements:
//!
//! | codes | scale s | code |
//! |---|---|---|
//! | 8 bits | max abs w / 127 | w / s |
//! | 4 bits, [`Offset::Middle`] | e / −8, e the w of largest magnitude | w / s + 8 |
//! | 4 bits, [`Offset::Minimum`] | (max w − min w) / 15, with m = min w | (w − m) / s |
//!
//! Scales and minima are rounded to their type first, and codes computed with what came of it; codes are rounded to
//! the nearest integer (halves away from 0) and clamped to their range. Where s rounds to 0, codes say 0.

use std::cell::Cell;
use std::sync::Arc;

use half::f16;
use rayon::prelude::*;
use wattle_kernels_cpu::Weight;
use wattle_kernels_cpu::panels::{Bits, Offset, PANEL};

use super::Model;
use super::aligned::AlignedBytes;
use super::format::{Format, INT4, INT8, PanelFormat, Q4_0, Q4_1, Q8_0};
use super::gather::gather;
use super::matrix::{Bytes, Dtype, Matrix};
use super::spec::{LayerWeights, Linear, Weights};
use super::view::weight;
use crate::error::{Error, Result};
use crate::threads;

/// What a model's weights are quantized to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Quant {
    /// 8 bits, a scale for 32.
    Q8_0,
    /// 4 bits, a scale for 32; embedding and head as [`Self::Q8_0`].
    Q4_0,
    /// 4 bits, a minimum and a step for 32; embedding and head as [`Self::Q8_0`].
    Q4_1,
    /// 8 bits, a scale per output.
    Int8,
    /// 4 bits, a scale per output; embedding and head as [`Self::Int8`].
    Int4,
}

impl Quant {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Q8_0, Self::Q4_0, Self::Q4_1, Self::Int8, Self::Int4];

    /// As options and files write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
            Self::Q4_1 => "q4_1",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
        }
    }

    /// Of projections inside the layers.
    pub fn layers(self) -> PanelFormat {
        match self {
            Self::Q8_0 => Q8_0,
            Self::Q4_0 => Q4_0,
            Self::Q4_1 => Q4_1,
            Self::Int8 => INT8,
            Self::Int4 => INT4,
        }
    }

    /// Of a matrix inside or outside the layers.
    pub(super) fn format(self, outside: bool) -> PanelFormat {
        if outside { self.outside() } else { self.layers() }
    }

    /// Of embedding and head.
    pub fn outside(self) -> PanelFormat {
        match self {
            Self::Q8_0 | Self::Q4_0 | Self::Q4_1 => Q8_0,
            Self::Int8 | Self::Int4 => INT8,
        }
    }
}

impl Model {
    /// The model with its dense projections, embedding and head quantized; norms, biases and position tables stay as
    /// they are, and so does what is quantized already. A tied head stays tied.
    ///
    /// # Errors
    /// [`Error::Value`] where nothing is left to quantize, or that names a matrix which has weights that are not finite,
    /// or for which memory is too small.
    pub fn quantized(&self, quant: Quant) -> Result<Self> {
        let changed = Cell::new(false);
        let model = self.stored(&|matrix, outside| {
            let made = quantize(matrix, quant.format(outside))?;
            changed.set(changed.get() || !Arc::ptr_eq(&made, matrix));
            Ok(made)
        })?;
        if !changed.get() {
            let reason = format!("{}, but all of the model's weights are quantized already", quant.name());
            return Err(Error::value("quant", reason));
        }
        Ok(model)
    }

    /// The model with its dense projections, embedding and head as f32: the same numbers in more bytes.
    ///
    /// # Errors
    /// [`Error::Value`] that names a matrix for which memory is too small.
    pub fn widened(&self) -> Result<Self> {
        self.stored(&|matrix, _| widen(matrix))
    }

    /// The model with every matrix as `make` stores it; a tied head stays tied.
    pub(super) fn stored(&self, make: Make) -> Result<Self> {
        let Weights { embed, positions, project_in, project_out, layers, final_norm, head } = &self.weights;
        let stored = |linear: &Linear, outside: bool| -> Result<Linear> {
            Ok(Linear { weight: make(&linear.weight, outside)?, bias: linear.bias.clone() })
        };
        let outside = |linear: &Linear| stored(linear, true);
        let new_embed = make(embed, true)?;
        let new_head = match Arc::ptr_eq(embed, &head.weight) {
            true => Linear { weight: Arc::clone(&new_embed), bias: head.bias.clone() },
            false => outside(head)?,
        };
        let layers = layers.iter().map(|layer| {
            let mut layer = layer.clone();
            let mut made = Vec::new();
            for linear in projections(&mut layer) {
                let before = Arc::clone(&linear.weight);
                *linear = stored(linear, false)?;
                if !Arc::ptr_eq(&before, &linear.weight) {
                    made.push(&mut linear.weight);
                }
            }
            gather(&mut made);
            Ok(layer)
        });
        let weights = Weights {
            layers: layers.collect::<Result<_>>()?,
            embed: new_embed,
            positions: positions.clone(),
            project_in: project_in.as_ref().map(outside).transpose()?,
            project_out: project_out.as_ref().map(outside).transpose()?,
            final_norm: final_norm.clone(),
            head: new_head,
        };
        Ok(Self { spec: self.spec.clone(), weights, dir: self.dir.clone() })
    }
}

/// The projections of a layer, in the order in which a step reads them.
fn projections(layer: &mut LayerWeights) -> impl Iterator<Item = &mut Linear> {
    let LayerWeights { q, k, v, o, gate, up, down, .. } = layer;
    [q, k, v, o].into_iter().chain(gate).chain([up, down])
}

/// Makes a matrix from another; the flag says whether it lies outside the layers.
type Make<'a> = &'a dyn Fn(&Arc<Matrix>, bool) -> Result<Arc<Matrix>>;

/// A dense matrix as f32; a quantized one as it is.
fn widen(matrix: &Arc<Matrix>) -> Result<Arc<Matrix>> {
    if matches!(matrix.format, Format::Panels(_)) {
        return Ok(Arc::clone(matrix));
    }
    let (rows, cols, dense) = (matrix.rows, matrix.cols, weight(matrix)?);
    let no_memory = || Error::value(&matrix.name, format!("no memory for [{rows}, {cols}] in f32"));
    let mut values = Vec::new();
    let len = rows.checked_mul(cols).ok_or_else(no_memory)?;
    values.try_reserve_exact(len).map_err(|_| no_memory())?;
    values.resize(len, 0.0);
    values.chunks_mut(cols.max(1)).enumerate().for_each(|(row, values)| dense.read_row(row, values));
    Matrix::from_f32(matrix.name.clone(), rows, cols, &values).map(Arc::new).ok_or_else(no_memory)
}

/// A matrix of this size and format whose codes are all 0, whatever was stored before.
pub(super) fn blank(matrix: &Arc<Matrix>, format: PanelFormat) -> Result<Arc<Matrix>> {
    let (rows, cols) = (matrix.rows, matrix.cols);
    let made = Made::zeroed(format, rows, cols).and_then(|made| made.matrix(&matrix.name, rows, cols));
    let no_memory = || Error::value(&matrix.name, format!("no memory for [{rows}, {cols}]"));
    made.map(Arc::new).ok_or_else(no_memory)
}

/// A dense matrix in `format`; a quantized one as it is.
pub(crate) fn quantize(matrix: &Arc<Matrix>, format: PanelFormat) -> Result<Arc<Matrix>> {
    if matches!(matrix.format, Format::Panels(_)) {
        return Ok(Arc::clone(matrix));
    }
    let (rows, cols) = (matrix.rows, matrix.cols);
    let no_memory = || Error::value(&matrix.name, format!("no memory to quantize [{rows}, {cols}]"));
    let mut made = Made::zeroed(format, rows, cols).ok_or_else(no_memory)?;
    let dense = weight(matrix)?;
    threads::ready()?;
    if !made.fill(&dense, rows, cols) {
        return Err(Error::value(&matrix.name, "has weights that are not finite, which cannot be quantized"));
    }
    made.matrix(&matrix.name, rows, cols).map(Arc::new).ok_or_else(no_memory)
}

/// The arrays of a quantized matrix while they are made.
pub(super) struct Made {
    pub format: PanelFormat,
    pub codes: AlignedBytes,
    pub scales: AlignedBytes,
    pub offsets: AlignedBytes,
}

impl Made {
    /// All codes, scales and offsets 0; `None` where there is no memory for them.
    pub fn zeroed(format: PanelFormat, rows: usize, cols: usize) -> Option<Self> {
        let [codes, scales, offsets] = format.bytes(rows, cols)?.map(AlignedBytes::zeroed);
        Some(Self { format, codes: codes?, scales: scales?, offsets: offsets? })
    }

    /// The matrix of these arrays.
    pub fn matrix(self, name: &str, rows: usize, cols: usize) -> Option<Matrix> {
        let scales = [Bytes::new(self.scales), Bytes::new(self.offsets)];
        Matrix::panels(name, rows, cols, self.format, Bytes::new(self.codes), scales)
    }

    /// Quantizes all rows, a panel at a time; false where an element is not finite.
    fn fill(&mut self, dense: &Weight, rows: usize, cols: usize) -> bool {
        let format = self.format;
        let Some([codes, scales, offsets]) = format.bytes(PANEL, cols) else { return false };
        let panels = self.codes.as_mut().par_chunks_mut(codes);
        let scales = self.scales.as_mut().par_chunks_mut(scales);
        // Formats without offsets have no bytes to divide: what comes after the last chunk is empty.
        let mut chunks = self.offsets.as_mut().chunks_mut(offsets.max(1));
        let offsets: Vec<_> = (0..rows.div_ceil(PANEL)).map(|_| chunks.next().unwrap_or_default()).collect();
        panels.zip(scales).zip(offsets).enumerate().all(|(index, ((codes, scales), offsets))| {
            let mut panel = PanelMut { format, cols, codes, scales, offsets };
            let (first, mut values) = (index * PANEL, vec![0.0; cols]);
            (first..rows.min(first + PANEL)).all(|row| {
                dense.read_row(row, &mut values);
                panel.quantize(row - first, &values)
            })
        })
    }
}

/// One panel.
pub(super) struct PanelMut<'a> {
    pub format: PanelFormat,
    pub cols: usize,
    pub codes: &'a mut [u8],
    pub scales: &'a mut [u8],
    pub offsets: &'a mut [u8],
}

impl PanelMut<'_> {
    /// Quantizes row `row` of the panel; false where an element is not finite.
    fn quantize(&mut self, row: usize, values: &[f32]) -> bool {
        let per = self.format.group(self.cols);
        let mut codes = vec![0; self.cols];
        for (group, w) in values.chunks(per).enumerate() {
            if !w.iter().all(|w| w.is_finite()) {
                return false;
            }
            let (scale, minimum) = steps(w, &self.format);
            let scale = self.set_scale(row, group, scale);
            if self.format.offset == Offset::Minimum {
                let at = (group * PANEL + row) * 2;
                self.offsets[at..at + 2].copy_from_slice(&f16::from_f32(minimum).to_le_bytes());
            }
            let minimum = f16::from_f32(minimum).to_f32();
            let inverse = if scale == 0.0 { 0.0 } else { 1.0 / f64::from(scale) };
            for (code, &w) in codes[group * per..].iter_mut().zip(w) {
                let steps = round((f64::from(w) - f64::from(minimum)) * inverse);
                *code = match (self.format.bits, self.format.offset) {
                    (Bits::Eight, _) => steps.clamp(-127, 127) as u8,
                    (Bits::Four, Offset::Middle) => (steps.saturating_add(8)).clamp(0, 15) as u8,
                    (Bits::Four, _) => steps.clamp(0, 15) as u8,
                };
            }
        }
        self.set_codes(row, &codes);
        true
    }

    /// Stores the codes of a row that had zeros.
    fn set_codes(&mut self, row: usize, codes: &[u8]) {
        // Four columns lie together.
        for (index, codes) in codes.chunks(4).enumerate() {
            let (byte, high) = self.format.bits.code_at(self.cols, row, 4 * index);
            for (to, code) in self.codes[byte..].iter_mut().zip(codes) {
                *to |= if high { code << 4 } else { *code };
            }
        }
    }

    /// Stores the code of an element that had 0.
    pub fn set_code(&mut self, row: usize, col: usize, code: u8) {
        let (byte, high) = self.format.bits.code_at(self.cols, row, col);
        self.codes[byte] |= if high { code << 4 } else { code };
    }

    /// Stores a scale, and says what came of it.
    fn set_scale(&mut self, row: usize, group: usize, scale: f32) -> f32 {
        let at = (group * PANEL + row) * self.format.scale.size();
        match self.format.scale {
            Dtype::F32 => {
                self.scales[at..at + 4].copy_from_slice(&scale.to_le_bytes());
                scale
            }
            Dtype::F16 => {
                let scale = f16::from_f32(scale.clamp(-65504.0, 65504.0));
                self.scales[at..at + 2].copy_from_slice(&scale.to_le_bytes());
                scale.to_f32()
            }
            Dtype::Bf16 => {
                let scale = half::bf16::from_f32(scale);
                self.scales[at..at + 2].copy_from_slice(&scale.to_le_bytes());
                scale.to_f32()
            }
        }
    }
}

/// The nearest integer, of two the one further from 0. (`f64::round` is a call where the processor is not known.)
fn round(x: f64) -> i32 {
    let whole = x as i32;
    let rest = x - f64::from(whole);
    whole.saturating_add(i32::from(rest >= 0.5) - i32::from(rest <= -0.5))
}

/// s and m of a group, before they are rounded.
fn steps(w: &[f32], format: &PanelFormat) -> (f32, f32) {
    let low = w.iter().copied().fold(f32::INFINITY, f32::min);
    let high = w.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    match (format.bits, format.offset) {
        (_, Offset::Minimum) => {
            let low = low.clamp(-65504.0, 65504.0);
            (high / 15.0 - low / 15.0, low)
        }
        (Bits::Eight, _) => (high.abs().max(low.abs()) / 127.0, 0.0),
        (Bits::Four, _) => (if high.abs() > low.abs() { high / -8.0 } else { low / -8.0 }, 0.0),
    }
}
