//! Bytes to the device, through one buffer: the host never holds more than a piece of them twice.

use std::sync::PoisonError;

use super::device::Gpu;
use crate::error::Result;

/// Bytes that are handed over at once.
pub(super) const PIECE: usize = 8 << 20;
/// Fewer bytes than this go with the next submission.
const SMALL: usize = 64 << 10;

/// Where pieces wait for their copy.
pub(super) fn staging(device: &wgpu::Device) -> wgpu::Buffer {
    device.create_buffer(&wgpu::BufferDescriptor {
        label: Some("uploads"),
        size: PIECE as u64,
        usage: wgpu::BufferUsages::MAP_WRITE | wgpu::BufferUsages::COPY_SRC,
        mapped_at_creation: false,
    })
}

impl Gpu {
    /// Writes bytes (a multiple of 4, at a multiple of 4) to a buffer.
    pub fn upload(&self, buffer: &wgpu::Buffer, offset: u64, bytes: &[u8]) -> Result<()> {
        if bytes.len() < SMALL {
            self.queue.write_buffer(buffer, offset, bytes);
            return Ok(());
        }
        let staging = self.uploads.lock().unwrap_or_else(PoisonError::into_inner);
        for (index, piece) in bytes.chunks(PIECE).enumerate() {
            let slice = staging.slice(..piece.len() as u64);
            // What goes wrong shows when the range is asked for.
            slice.map_async(wgpu::MapMode::Write, drop);
            self.wait(None)?;
            slice.get_mapped_range_mut().map_err(|e| self.error(e))?.copy_from_slice(piece);
            staging.unmap();
            let mut encoder = self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            let at = offset + (index * PIECE) as u64;
            encoder.copy_buffer_to_buffer(&staging, 0, buffer, at, piece.len() as u64);
            self.queue.submit([encoder.finish()]);
        }
        Ok(())
    }
}
