//! Owned bytes that begin at a cache line.

use std::ops::Range;

use memmap2::MmapMut;
use rayon::prelude::*;

use super::matrix::{Bytes, Dtype};

/// Bytes from which on memory is asked for in huge pages (Linux): reading weights in order then waits for the
/// translation of an address once in 2 MiB, not once in 4 KiB.
const HUGE: usize = 2 << 20;

/// Zeroed memory, such as for weights that a file cannot lend as they are, from a cache line on; where it is large, in huge
/// pages, if the system has any.
pub struct AlignedBytes(Memory);

/// A cache line: no vector of a product lies in two.
#[derive(Clone, Copy, bytemuck::Zeroable, bytemuck::Pod)]
#[repr(C, align(64))]
struct Line([u64; 8]);

enum Memory {
    /// Lines, the last of which may reach past the end, and how many bytes count.
    Lines(Vec<Line>, usize),
    /// Pages of their own, and the bytes of them that count.
    Pages(MmapMut, Range<usize>),
}

impl AlignedBytes {
    /// `len` zero bytes, or `None` where there is no memory for them.
    pub fn zeroed(len: usize) -> Option<Self> {
        if len >= HUGE {
            let pages = MmapMut::map_anon(len.checked_add(HUGE)?).ok()?;
            let start = pages.as_ptr().align_offset(HUGE).min(HUGE);
            // Not the rest behind the last whole one: a huge page would take memory that nobody asked for.
            #[cfg(target_os = "linux")]
            if let Err(error) = pages.advise_range(memmap2::Advice::HugePage, start, len / HUGE * HUGE) {
                // A kernel without huge pages gives small ones.
                tracing::debug!(%error, "no huge pages");
            }
            return Some(Self(Memory::Pages(pages, start..start + len)));
        }
        let count = len.div_ceil(size_of::<Line>());
        let mut lines = Vec::new();
        lines.try_reserve_exact(count).ok()?;
        lines.resize(count, bytemuck::Zeroable::zeroed());
        Some(Self(Memory::Lines(lines, len)))
    }
}

impl AsRef<[u8]> for AlignedBytes {
    fn as_ref(&self) -> &[u8] {
        match &self.0 {
            Memory::Lines(lines, len) => &bytemuck::cast_slice(lines)[..*len],
            Memory::Pages(pages, range) => &pages[range.clone()],
        }
    }
}

impl AsMut<[u8]> for AlignedBytes {
    fn as_mut(&mut self) -> &mut [u8] {
        match &mut self.0 {
            Memory::Lines(lines, len) => &mut bytemuck::cast_slice_mut(lines)[..*len],
            Memory::Pages(pages, range) => &mut pages[range.clone()],
        }
    }
}

/// `data` itself where it is aligned to its elements, else a copy; `None` where there is no memory for it.
pub(crate) fn aligned(data: Bytes, dtype: Dtype) -> Option<Bytes> {
    let bytes = data.as_ref();
    if bytes.as_ptr().align_offset(dtype.size()) == 0 {
        return Some(data);
    }
    let mut copy = AlignedBytes::zeroed(bytes.len())?;
    copy.as_mut().copy_from_slice(bytes);
    Some(Bytes::new(copy))
}

/// The transpose of a \[rows, cols\] matrix; `None` where there is no memory for it, or `data` is of another size.
pub(crate) fn transposed(data: &[u8], rows: usize, cols: usize, dtype: Dtype) -> Option<Bytes> {
    let mut to = AlignedBytes::zeroed(data.len())?;
    match dtype {
        Dtype::F32 => transpose::<4>(data, rows, cols, to.as_mut())?,
        Dtype::F16 | Dtype::Bf16 => transpose::<2>(data, rows, cols, to.as_mut())?,
    }
    Some(Bytes::new(to))
}

/// Elements are byte arrays, so that misaligned data needs no copy first.
fn transpose<const SIZE: usize>(from: &[u8], rows: usize, cols: usize, to: &mut [u8]) -> Option<()> {
    const TILE: usize = 32; // both sides of a tile stay in the first-level cache
    let (from, to) = (from.as_chunks::<SIZE>().0, to.as_chunks_mut::<SIZE>().0);
    if from.len() != rows.checked_mul(cols)? || from.is_empty() {
        return None;
    }
    to.par_chunks_mut(TILE * rows).enumerate().for_each(|(tile, band)| {
        for start in (0..rows).step_by(TILE) {
            for (within, line) in band.chunks_exact_mut(rows).enumerate() {
                let col = tile * TILE + within;
                for row in start..rows.min(start + TILE) {
                    line[row] = from[row * cols + col];
                }
            }
        }
    });
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transpose_moves_every_element() {
        for (rows, cols) in [(1, 1), (1, 70), (33, 31), (64, 65), (3, 100)] {
            let from: Vec<u32> = (0..rows * cols).map(|i| i as u32).collect();
            let got = transposed(bytemuck::cast_slice(&from), rows, cols, Dtype::F32).unwrap();
            let got: &[u32] = bytemuck::cast_slice(got.as_ref());
            let expected: Vec<u32> =
                (0..cols).flat_map(|c| (0..rows).map(move |r| (r * cols + c) as u32)).collect();
            assert_eq!(got, expected, "{rows} x {cols}");
        }
    }

    #[test]
    fn only_misaligned_bytes_are_copied() {
        let owner = Bytes::new(AlignedBytes::zeroed(17).unwrap());
        let kept = aligned(owner.slice(4, 8).unwrap(), Dtype::F32).unwrap();
        assert_eq!(kept.as_ref().as_ptr(), owner.slice(4, 8).unwrap().as_ref().as_ptr());
        let copied = aligned(owner.slice(1, 16).unwrap(), Dtype::F16).unwrap();
        assert_eq!(copied.as_ref().as_ptr().align_offset(8), 0);
        assert_eq!(copied.as_ref().len(), 16);
    }
}
