//! Zeroed memory that may not be there, with guard words behind it.

use bytemuck::Pod;

use crate::error::{Error, Result};

/// Bytes behind a guarded buffer.
const GUARD: usize = 64;
/// What they hold.
const PATTERN: u8 = 0xda;

/// Elements; the system backs them with memory only when they are touched.
pub(super) struct Buffer<T = f32> {
    data: Box<[T]>,
    len: usize,
}

impl<T: Pod> Buffer<T> {
    /// `len` zeros, followed by guard words if `guards`.
    ///
    /// # Errors
    /// [`Error::Device`] when there is not enough memory; `what` is named in it.
    pub fn new(what: &str, len: Option<usize>, guards: bool) -> Result<Self> {
        let guard = if guards { GUARD / size_of::<T>() } else { 0 };
        let memory = len.and_then(|len| {
            let total = len.checked_add(guard)?;
            // The allocator answers sizes above isize::MAX with a panic.
            isize::try_from(total.checked_mul(size_of::<T>())?).ok()?;
            Some((len, bytemuck::allocation::try_zeroed_slice_box::<T>(total).ok()?))
        });
        let Some((len, mut data)) = memory else {
            let mib = |len: usize| format!("{} MiB", (len as u128 * size_of::<T>() as u128) >> 20);
            let size = len.map_or("more than the address space".into(), mib);
            return Err(Error::device("cpu", format!("no memory for {what}: {size}")));
        };
        bytemuck::cast_slice_mut::<T, u8>(&mut data[len..]).fill(PATTERN);
        Ok(Self { data, len })
    }

    /// Elements, guard words not counted.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The elements.
    pub fn values(&self) -> &[T] {
        &self.data[..self.len]
    }

    /// The elements.
    pub fn values_mut(&mut self) -> &mut [T] {
        &mut self.data[..self.len]
    }

    /// Whether the guard words are as they were.
    pub fn intact(&self) -> bool {
        bytemuck::cast_slice::<T, u8>(&self.data[self.len..]).iter().all(|&byte| byte == PATTERN)
    }
}
