//! How fast memory is read, measured.

use std::hint::black_box;
use std::thread;
use std::time::Instant;

use wattle_engine::model::AlignedBytes;
use wattle_kernels_cpu::fast::peak;

use crate::error::{Error, Result};

/// Bytes read at least for one timing, so that starting threads does not count.
const LEAST_READ: usize = 1 << 28;

/// Bytes of the vectors in which memory is read.
const VECTOR: usize = 64;

/// Bytes per second at which `threads` threads together read a buffer of `bytes` bytes, over and over, as kernels read
/// weights: in whole vectors, asked for ahead, from huge pages: the best of three timings. A buffer that fits a cache is
/// read from there, as weights of that size would be.
///
/// # Errors
/// [`Error::Engine`] where there is no memory for the buffer, or no thread to be had.
pub fn read(bytes: u64, threads: usize) -> Result<f64> {
    let threads = threads.max(1);
    let len = usize::try_from(bytes).unwrap_or(usize::MAX) / VECTOR * VECTOR;
    let len = len.max(threads * VECTOR);
    let too_big = || Error::value("memory", format!("{bytes} bytes are not available"));
    let mut buffer = AlignedBytes::zeroed(len).ok_or_else(too_big)?;
    // Written, so that every page is a page of its own.
    bytemuck::cast_slice_mut(buffer.as_mut()).fill(1.0_f32);
    let passes = LEAST_READ.div_ceil(len);
    let vectors = bytemuck::cast_slice(buffer.as_ref());
    let mut seconds = f64::INFINITY;
    for _ in 0..3 {
        seconds = seconds.min(time(vectors, threads, passes)?);
    }
    Ok((len * passes) as f64 / seconds)
}

/// Seconds in which the threads read the buffer `passes` times, each its own part.
fn time(buffer: &[[f32; VECTOR / 4]], threads: usize, passes: usize) -> Result<f64> {
    let started = Instant::now();
    thread::scope(|scope| {
        let mut parts = buffer.chunks(buffer.len().div_ceil(threads));
        parts.try_for_each(|part| {
            let read = move || {
                for _ in 0..passes {
                    black_box(peak::read(black_box(part)));
                }
            };
            thread::Builder::new().spawn_scoped(scope, read).map(drop)
        })
    })
    .map_err(|error| Error::value("threads", format!("{threads} could not be started: {error}")))?;
    Ok(started.elapsed().as_secs_f64())
}

/// Bytes per second at which the GPU of this name reads a buffer of `bytes` bytes (no more than 512 MiB), over and over.
///
/// # Errors
/// [`Error::Engine`] where there is no such GPU, or no room on it.
#[cfg(feature = "gpu")]
pub fn read_on(device: &str, bytes: u64) -> Result<f64> {
    Ok(crate::devices::ceilings(Some(device))?.read(bytes)?)
}

/// A build without GPUs has none of any name.
///
/// # Errors
/// Always.
#[cfg(not(feature = "gpu"))]
pub fn read_on(device: &str, _bytes: u64) -> Result<f64> {
    Err(Error::value("device", format!("{device}: this build has no GPU backend")))
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_rate_is_measured_for_any_size() {
        for bytes in [0, 8, 1 << 20] {
            let rate = super::read(bytes, 3).unwrap();
            assert!(rate.is_finite() && rate > 0.0, "{bytes}: {rate}");
        }
    }
}
