//! The tensors that quantized modules are made of.

use crate::error::Result;
use crate::model::checkpoint::Checkpoint;
use crate::model::format::Bits;
use crate::model::matrix::{Bytes, Dtype};
use crate::model::tensors::to_f32;

/// Codes in a word.
pub(super) const fn per_word(bits: Bits) -> usize {
    match bits {
        Bits::Four => 8,
        Bits::Eight => 4,
    }
}

/// Unsigned codes, packed into 32-bit words from the lowest bits on.
#[derive(Clone, Copy)]
pub(super) struct Words<'a> {
    words: &'a [[u8; 4]],
    bits: Bits,
}

impl<'a> Words<'a> {
    /// The codes in a tensor of words.
    pub(super) fn new(bytes: &'a Bytes, bits: Bits) -> Self {
        Self { words: bytes.as_ref().as_chunks().0, bits }
    }

    /// The code at a place of a word.
    pub(super) fn get(&self, word: usize, place: usize) -> u8 {
        let word = u32::from_le_bytes(self.words[word]);
        match self.bits {
            Bits::Four => (word >> (4 * place)) as u8 & 15,
            Bits::Eight => (word >> (8 * place)) as u8,
        }
    }
}

/// The bytes of a tensor of 32-bit words.
pub(super) fn words(from: &Checkpoint, name: &str, shape: &[usize]) -> Result<Bytes> {
    from.exactly(name, shape, safetensors::Dtype::I32)
}

/// The bytes of a tensor of bytes.
pub(super) fn bytes(from: &Checkpoint, name: &str, shape: &[usize]) -> Result<Bytes> {
    from.exactly(name, shape, safetensors::Dtype::U8)
}

/// A tensor of f32.
pub(super) fn floats(from: &Checkpoint, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
    let values = to_f32(from.exactly(name, shape, safetensors::Dtype::F32)?.as_ref(), Dtype::F32);
    finite(from, name, &values)?;
    Ok(values)
}

/// Scales as a checkpoint stores them.
pub(super) struct Scales {
    bytes: Bytes,
    pub(super) dtype: Dtype,
}

impl Scales {
    /// The scales of a tensor; an error where one is not finite.
    pub(super) fn read(from: &Checkpoint, name: &str, shape: &[usize]) -> Result<Self> {
        /// Scales that are looked at together: no more are converted at once.
        const CHUNK: usize = 1 << 12;
        let (dtype, bytes) = from.tensor(name, shape)?;
        for chunk in bytes.as_ref().chunks(CHUNK * dtype.size()) {
            finite(from, name, &to_f32(chunk, dtype))?;
        }
        Ok(Self { bytes, dtype })
    }

    /// Their bytes, not aligned.
    pub(super) fn all(&self) -> &[u8] {
        self.bytes.as_ref()
    }
}

fn finite(from: &Checkpoint, name: &str, values: &[f32]) -> Result<()> {
    match values.iter().all(|value| value.is_finite()) {
        true => Ok(()),
        false => Err(from.error(name, "has values that are not finite")),
    }
}
