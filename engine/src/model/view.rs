//! Matrices as kernels read them.

use wattle_kernels_cpu::panels::{Offsets, Panels, Scales};
use wattle_kernels_cpu::{Stored, Weight};

use super::format::{Format, Offset, PanelFormat};
use super::matrix::{Dtype, Matrix, Part};
use crate::error::{Error, Result};

/// A matrix as kernels read it.
pub(crate) fn weight(matrix: &Matrix) -> Result<Weight<'_>> {
    let misaligned = |_| Error::value(&matrix.name, "its elements are not aligned");
    let mut first = 0;
    let mut parts = Vec::with_capacity(matrix.parts.len());
    for part in &matrix.parts {
        let bytes = part.data.as_ref();
        let stored = match matrix.format {
            Format::Dense(Dtype::F32) => bytemuck::try_cast_slice(bytes).map(Stored::F32),
            Format::Dense(Dtype::F16) => bytemuck::try_cast_slice(bytes).map(Stored::F16),
            Format::Dense(Dtype::Bf16) => bytemuck::try_cast_slice(bytes).map(Stored::Bf16),
            Format::Panels(format) => panels(part, matrix.cols, &format).map(Stored::Panels),
        };
        parts.push((first, stored.map_err(misaligned)?));
        first += part.rows;
    }
    Ok(Weight { cols: matrix.cols, parts, order: matrix.order.as_deref() })
}

/// A quantized part.
fn panels<'a>(
    part: &'a Part,
    cols: usize,
    format: &PanelFormat,
) -> Result<Panels<'a>, bytemuck::PodCastError> {
    let [scales, offsets] = part.scales.as_ref().map_or([&[][..]; 2], |s| s.each_ref().map(AsRef::as_ref));
    Ok(Panels {
        rows: part.rows,
        cols,
        group: format.group(cols),
        bits: format.bits,
        codes: part.data.as_ref(),
        scales: match format.scale {
            Dtype::F32 => Scales::F32(bytemuck::try_cast_slice(scales)?),
            Dtype::F16 => Scales::F16(bytemuck::try_cast_slice(scales)?),
            Dtype::Bf16 => Scales::Bf16(bytemuck::try_cast_slice(scales)?),
        },
        offsets: match format.offset {
            Offset::Middle => Offsets::Middle,
            Offset::Minimum => Offsets::Minimum(bytemuck::try_cast_slice(offsets)?),
            Offset::Zero => Offsets::Zero(offsets),
            Offset::NormalFloat => Offsets::NormalFloat,
        },
    })
}
