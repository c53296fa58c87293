//! How fast memory is read, measured.

use std::hint::black_box;
use std::time::Instant;

use crate::error::{Error, Result};

/// Bytes read at least for one timing, so that starting threads does not count.
const LEAST_READ: usize = 1 << 28;

/// Bytes per second at which `threads` threads together read a buffer of `bytes` bytes, over and over: the best of
/// three timings. A buffer that fits a cache is read from there, as weights of that size would be.
///
/// # Errors
/// [`Error::Engine`] where there is no memory for the buffer.
pub fn read(bytes: u64, threads: usize) -> Result<f64> {
    let (threads, too_big) =
        (threads.max(1), |_| Error::value("memory", format!("{bytes} bytes are not available")));
    let words = usize::try_from(bytes / 8).unwrap_or(usize::MAX).max(threads);
    let mut buffer: Vec<u64> = Vec::new();
    buffer.try_reserve_exact(words).map_err(too_big)?;
    // Written, so that every page is a page of its own.
    buffer.extend((0..words as u64).map(|word| word.wrapping_mul(0x9E37_79B9_7F4A_7C15)));
    let passes = LEAST_READ.div_ceil(words * 8);
    let seconds = (0..3).map(|_| time(&buffer, threads, passes)).fold(f64::INFINITY, f64::min);
    Ok((words * 8 * passes) as f64 / seconds)
}

/// Seconds in which the threads read the buffer `passes` times, each its own part.
fn time(buffer: &[u64], threads: usize, passes: usize) -> f64 {
    let started = Instant::now();
    std::thread::scope(|scope| {
        for part in buffer.chunks(buffer.len().div_ceil(threads)) {
            scope.spawn(move || {
                for _ in 0..passes {
                    black_box(black_box(part).iter().fold(0u64, |sum, &word| sum.wrapping_add(word)));
                }
            });
        }
    });
    started.elapsed().as_secs_f64()
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
