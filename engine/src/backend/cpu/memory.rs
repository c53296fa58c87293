//! Zeroed memory that may not be there, with guard words behind it.

use std::marker::PhantomData;

use bytemuck::Pod;

use crate::error::{Error, Result};
use crate::model::AlignedBytes;

/// Bytes behind a guarded buffer.
const GUARD: usize = 64;
/// What they hold.
const PATTERN: u8 = 0xda;

/// Elements; the system backs them with memory only when they are touched. Where there are many, in huge pages: attention
/// reads a few short runs of each layer's cache between whole matrices, which leave no translation of an address behind.
pub(super) struct Buffer<T = f32> {
    data: AlignedBytes,
    len: usize,
    elements: PhantomData<T>,
}

impl<T: Pod> Buffer<T> {
    /// `len` zeros, followed by guard words if `guards`.
    ///
    /// # Errors
    /// [`Error::Device`] when there is not enough memory; `what` is named in it.
    pub fn new(what: &str, len: Option<usize>, guards: bool) -> Result<Self> {
        let guard = if guards { GUARD } else { 0 };
        let memory = len.and_then(|len| {
            let bytes = len.checked_mul(size_of::<T>())?;
            let total = bytes.checked_add(guard)?;
            // The allocator panics where it is asked for more.
            isize::try_from(total).ok()?;
            Some((len, bytes, AlignedBytes::zeroed(total)?))
        });
        let Some((len, bytes, mut data)) = memory else {
            let mib = |len: usize| format!("{} MiB", (len as u128 * size_of::<T>() as u128) >> 20);
            let size = len.map_or("more than the address space".into(), mib);
            return Err(Error::device("cpu", format!("no memory for {what}: {size}")));
        };
        data.as_mut()[bytes..].fill(PATTERN);
        Ok(Self { data, len, elements: PhantomData })
    }

    /// Elements, guard words not counted.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Bytes of the elements.
    fn bytes(&self) -> usize {
        self.len * size_of::<T>()
    }

    /// The elements.
    pub fn values(&self) -> &[T] {
        bytemuck::cast_slice(&self.data.as_ref()[..self.bytes()])
    }

    /// The elements.
    pub fn values_mut(&mut self) -> &mut [T] {
        let bytes = self.bytes();
        bytemuck::cast_slice_mut(&mut self.data.as_mut()[..bytes])
    }

    /// Whether the guard words are as they were.
    pub fn intact(&self) -> bool {
        self.data.as_ref()[self.bytes()..].iter().all(|&byte| byte == PATTERN)
    }
}
