//! Zeroed memory that may not be there, with guard words behind it.

use crate::error::{Error, Result};

/// Words behind a guarded buffer.
const GUARD: usize = 16;
/// What they hold: a NaN that no arithmetic makes.
const PATTERN: u32 = 0x7fde_adbe;

/// f32 elements; the system backs them with memory only when they are touched.
pub(super) struct Buffer {
    data: Box<[f32]>,
    len: usize,
}

impl Buffer {
    /// `len` zeros, followed by guard words if `guards`.
    ///
    /// # Errors
    /// [`Error::Device`] when there is not enough memory; `what` is named in it.
    pub fn new(what: &str, len: Option<usize>, guards: bool) -> Result<Self> {
        let guard = if guards { GUARD } else { 0 };
        let memory = len.and_then(|len| {
            let total = len.checked_add(guard)?;
            // The allocator answers sizes above isize::MAX with a panic.
            isize::try_from(total.checked_mul(size_of::<f32>())?).ok()?;
            Some((len, bytemuck::allocation::try_zeroed_slice_box::<f32>(total).ok()?))
        });
        let Some((len, mut data)) = memory else {
            let size =
                len.map_or("more than the address space".into(), |len| format!("{} MiB", len / (1 << 18)));
            return Err(Error::device("cpu", format!("no memory for {what}: {size}")));
        };
        data[len..].fill(f32::from_bits(PATTERN));
        Ok(Self { data, len })
    }

    /// Elements, guard words not counted.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The elements.
    pub fn values(&self) -> &[f32] {
        &self.data[..self.len]
    }

    /// The elements.
    pub fn values_mut(&mut self) -> &mut [f32] {
        &mut self.data[..self.len]
    }

    /// Whether the guard words are as they were.
    pub fn intact(&self) -> bool {
        self.data[self.len..].iter().all(|word| word.to_bits() == PATTERN)
    }
}
