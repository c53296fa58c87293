//! Quantized weights on the device: the stored bytes as they lie, all codes of a buffer before its scales and offsets.

use std::ops::Range;

use wattle_shaders::params::Panels;

use super::device::Gpu;
use super::launch::offset_code;
use super::weights::Chunk;
use crate::error::Result;
use crate::model::{BLOCK, Dtype, Matrix, PANEL, PanelFormat, Part};

/// Consecutive parts whose panels follow each other: all but the last have whole panels only.
fn runs(parts: &[Part]) -> Vec<&[Part]> {
    parts.split_inclusive(|part| !part.rows.is_multiple_of(PANEL)).collect()
}

/// Uploads a matrix, split by panels where one binding cannot hold it, and where a part ends inside a panel.
pub(super) fn upload(gpu: &Gpu, matrix: &Matrix, format: PanelFormat) -> Result<Vec<Chunk>> {
    let sizes = format.bytes(PANEL, matrix.cols).unwrap_or([usize::MAX; 3]);
    let panel_bytes = sizes.iter().fold(0_usize, |sum, &size| sum.saturating_add(size));
    let per_chunk = usize::try_from(gpu.limits.binding).unwrap_or(usize::MAX) / panel_bytes.max(1);
    if per_chunk == 0 {
        let most = gpu.limits.binding;
        let reason = format!("{}: 16 rows have {panel_bytes} bytes, a binding {most}", matrix.name);
        return Err(gpu.error(reason));
    }
    let (mut chunks, mut first) = (Vec::new(), 0);
    for parts in runs(&matrix.parts) {
        let rows: usize = parts.iter().map(|part| part.rows).sum();
        let panels = rows.div_ceil(PANEL);
        for start in (0..panels).step_by(per_chunk) {
            let range = start..panels.min(start + per_chunk);
            let rows = rows.min(range.end * PANEL) - start * PANEL;
            let buffer = gpu.storage(&matrix.name, (range.len() * panel_bytes) as u64)?;
            let panels = params(&format, matrix.cols, sizes.map(|size| range.len() * size));
            write(gpu, &buffer, parts, &range, sizes)?;
            chunks.push(Chunk { buffer, first: first + start * PANEL, rows, panels });
        }
        first += rows;
    }
    gpu.check()?;
    Ok(chunks)
}

/// Writes the panels `range` of a run, of which each takes `sizes` bytes of the three arrays.
fn write(
    gpu: &Gpu,
    buffer: &wgpu::Buffer,
    parts: &[Part],
    range: &Range<usize>,
    sizes: [usize; 3],
) -> Result<()> {
    let mut at = 0;
    for (array, size) in sizes.into_iter().enumerate() {
        let mut first = 0;
        for part in parts {
            let panels = part.rows.div_ceil(PANEL);
            let (start, end) = (range.start.max(first), range.end.min(first + panels));
            if start < end && size > 0 {
                let bytes = match (&part.scales, array) {
                    (_, 0) => part.data.as_ref(),
                    (Some(scales), _) => scales[array - 1].as_ref(),
                    (None, _) => &[],
                };
                let bytes = &bytes[(start - first) * size..(end - first) * size];
                gpu.upload(buffer, at, bytes)?;
                at += bytes.len() as u64;
            }
            first += panels;
        }
    }
    Ok(())
}

/// How a shader finds its way in a buffer whose arrays have these lengths in bytes.
fn params(format: &PanelFormat, cols: usize, [codes, scales, _]: [usize; 3]) -> Panels {
    Panels {
        blocks: cols.div_ceil(BLOCK) as u32,
        group_k4: (format.group(cols) / 4) as u32,
        groups: format.groups(cols) as u32,
        scales: (codes / 16) as u32,
        offsets: ((codes + scales) / 16) as u32,
        scale_type: match format.scale {
            Dtype::F32 => 0,
            Dtype::F16 => 1,
            Dtype::Bf16 => 2,
        },
        offset_type: offset_code(format.offset),
        _pad: 0,
    }
}
