//! Base weights on the device: rows padded to whole vec4s, split by rows where one binding cannot hold them.

use std::collections::HashMap;
use std::sync::Arc;

use wattle_shaders::params::Panels;

use super::device::Gpu;
use super::panels;
use crate::error::Result;
use crate::model::{Dtype, Format, Matrix, Vector};

/// Bytes that may wait in the driver's staging memory before the upload waits for the device.
const IN_FLIGHT: u64 = 32 << 20;
/// Bytes that are handed over at once, and the most that is copied to pad rows.
const PIECE: usize = 4 << 20;

/// Consecutive rows of a matrix in one buffer.
pub(super) struct Chunk {
    pub buffer: wgpu::Buffer,
    pub first: usize,
    pub rows: usize,
    /// Of a quantized matrix; else zeros.
    pub panels: Panels,
}

/// A matrix on the device: \[rows, cols padded to 4\] in its stored type, or panels.
pub(super) struct DeviceMatrix {
    pub chunks: Vec<Chunk>,
}

/// What identifies a matrix: where the bytes of its parts lie, its columns and format; their order concerns the inputs.
/// Prepared plans are kept, and hold their matrices: an address stays taken for as long as it is in the store.
type Key = (Vec<(usize, usize)>, usize, Format);

/// The matrices that plans share.
#[derive(Default)]
pub(super) struct Weights {
    matrices: HashMap<Key, Arc<DeviceMatrix>>,
    /// Bytes on the device, vectors and tables included.
    pub bytes: u64,
}

impl Weights {
    /// The matrix on the device; uploaded unless a plan has brought it already.
    pub fn matrix(&mut self, gpu: &Gpu, matrix: &Matrix) -> Result<Arc<DeviceMatrix>> {
        let place = |part: &crate::model::Part| {
            let bytes = part.data.as_ref();
            (bytes.as_ptr() as usize, bytes.len())
        };
        let key = (matrix.parts.iter().map(place).collect(), matrix.cols, matrix.format);
        if let Some(known) = self.matrices.get(&key) {
            return Ok(Arc::clone(known));
        }
        let chunks = match matrix.format {
            Format::Dense(dtype) => upload(gpu, matrix, dtype)?,
            Format::Panels(format) => panels::upload(gpu, matrix, format)?,
        };
        self.bytes += chunks.iter().map(|chunk| chunk.buffer.size()).sum::<u64>();
        let matrix = Arc::new(DeviceMatrix { chunks });
        self.matrices.insert(key, Arc::clone(&matrix));
        Ok(matrix)
    }

    /// Vectors one after the other, each of `len` elements; zeros for those that are missing.
    pub fn vectors(&mut self, gpu: &Gpu, vectors: &[Option<&Vector>], len: usize) -> Result<wgpu::Buffer> {
        let zeros = vec![0.0; len];
        let values: Vec<f32> =
            vectors.iter().flat_map(|v| v.map_or(&zeros, |v| &v.values)).copied().collect();
        self.values(gpu, "vector", &values)
    }

    /// A buffer with these values.
    pub fn values<T: bytemuck::NoUninit>(
        &mut self,
        gpu: &Gpu,
        label: &str,
        values: &[T],
    ) -> Result<wgpu::Buffer> {
        let buffer = gpu.storage(label, size_of_val(values) as u64)?;
        let mut uploader = Uploader { gpu, waiting: 0 };
        uploader.bytes(&buffer, 0, bytemuck::cast_slice(values))?;
        self.bytes += buffer.size();
        Ok(buffer)
    }
}

/// Rows of a matrix that one binding holds; 0 if not even one fits.
fn rows_per_chunk(gpu: &Gpu, row_bytes: usize) -> usize {
    usize::try_from(gpu.limits.binding).unwrap_or(usize::MAX) / row_bytes
}

fn upload(gpu: &Gpu, matrix: &Matrix, dtype: Dtype) -> Result<Vec<Chunk>> {
    let row_bytes = matrix.cols.next_multiple_of(4) * dtype.size();
    let per_chunk = rows_per_chunk(gpu, row_bytes);
    if per_chunk == 0 {
        let most = gpu.limits.binding;
        return Err(gpu.error(format!("{}: a row has {row_bytes} bytes, a binding {most}", matrix.name)));
    }
    let mut chunks = Vec::new();
    for first in (0..matrix.rows).step_by(per_chunk) {
        let rows = per_chunk.min(matrix.rows - first);
        let buffer = gpu.storage(&matrix.name, (rows * row_bytes) as u64)?;
        chunks.push(Chunk { buffer, first, rows, panels: Panels::default() });
    }
    let mut uploader = Uploader { gpu, waiting: 0 };
    let mut part_first = 0;
    for part in &matrix.parts {
        for chunk in &chunks {
            let start = part_first.max(chunk.first);
            let end = (part_first + part.rows).min(chunk.first + chunk.rows);
            if start < end {
                let stored = matrix.cols * dtype.size();
                let rows = &part.data.as_ref()[(start - part_first) * stored..(end - part_first) * stored];
                let offset = ((start - chunk.first) * row_bytes) as u64;
                uploader.rows(&chunk.buffer, offset, rows, stored, row_bytes)?;
            }
        }
        part_first += part.rows;
    }
    uploader.flush()?;
    gpu.check()?;
    Ok(chunks)
}

/// Writes to buffers piece by piece, so that the host never holds more than a bounded copy.
pub(super) struct Uploader<'a> {
    pub gpu: &'a Gpu,
    pub waiting: u64,
}

impl Uploader<'_> {
    /// Rows of `stored` bytes to rows of `padded` bytes.
    fn rows(
        &mut self,
        buffer: &wgpu::Buffer,
        offset: u64,
        rows: &[u8],
        stored: usize,
        padded: usize,
    ) -> Result<()> {
        if stored == padded {
            return self.bytes(buffer, offset, rows);
        }
        let at_once = (PIECE / padded).max(1);
        for (index, piece) in rows.chunks(at_once * stored).enumerate() {
            let mut copy = vec![0; piece.len() / stored * padded];
            for (to, from) in copy.chunks_exact_mut(padded).zip(piece.chunks_exact(stored)) {
                to[..stored].copy_from_slice(from);
            }
            self.write(buffer, offset + (index * at_once * padded) as u64, &copy)?;
        }
        Ok(())
    }

    /// Bytes as they are.
    pub fn bytes(&mut self, buffer: &wgpu::Buffer, offset: u64, bytes: &[u8]) -> Result<()> {
        for (index, piece) in bytes.chunks(PIECE).enumerate() {
            self.write(buffer, offset + (index * PIECE) as u64, piece)?;
        }
        Ok(())
    }

    fn write(&mut self, buffer: &wgpu::Buffer, offset: u64, bytes: &[u8]) -> Result<()> {
        self.gpu.queue.write_buffer(buffer, offset, bytes);
        self.waiting += bytes.len() as u64;
        if self.waiting > IN_FLIGHT { self.flush() } else { Ok(()) }
    }

    /// Waits until all pieces are on the device: only then are their copies on the host freed.
    pub fn flush(&mut self) -> Result<()> {
        self.waiting = 0;
        let submission = self.gpu.queue.submit([]);
        self.gpu.wait(Some(submission))
    }
}
