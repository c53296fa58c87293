//! Reading of safetensors files without trust in their headers.

use std::fs::File;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::tensor::Metadata;
use safetensors::{Dtype, SafeTensors};

use crate::{Error, Result};

/// More than the header of any adapter: some 200 bytes a tensor.
const MAX_HEADER_BYTES: u64 = 16 << 20;

/// A mapped safetensors file, whose header was checked against it.
pub(super) struct TensorFile {
    path: PathBuf,
    map: Mmap,
    tensors: Metadata,
    /// Where tensors begin in the file.
    start: usize,
}

impl TensorFile {
    /// Maps the file at `path`.
    ///
    /// # Errors
    /// [`Error::File`] when it cannot be opened, or its header is not sound.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let wrong = |reason: String| Error::file(path, reason);
        let file = File::open(path).map_err(|e| wrong(e.to_string()))?;
        let bytes = file.metadata().map_err(|e| wrong(e.to_string()))?;
        if !bytes.is_file() || bytes.len() < 8 {
            return Err(wrong("shorter than a safetensors header".into()));
        }
        // SAFETY: the map is only read. As with every mapped file, nobody may shorten it meanwhile.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| wrong(e.to_string()))?;
        let header = map.first_chunk().map_or(u64::MAX, |bytes| u64::from_le_bytes(*bytes));
        let most = MAX_HEADER_BYTES.min(bytes.len() - 8);
        if header > most {
            return Err(wrong(format!("claims a header of {header} bytes, expected at most {most}")));
        }
        let (header, tensors) = SafeTensors::read_metadata(&map)
            .map_err(|e| wrong(format!("not a sound safetensors file: {e}")))?;
        Ok(Self { path: path.to_path_buf(), map, tensors, start: 8 + header })
    }

    /// The file's path.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The names of its tensors.
    pub(super) fn names(&self) -> Vec<String> {
        self.tensors.offset_keys()
    }

    /// The shape of the tensor `name`.
    pub(super) fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.info(name).map(|info| info.shape.as_slice())
    }

    /// The values of the tensor `name`.
    ///
    /// # Errors
    /// [`Error::Field`] when there is no such tensor, or it is not F32, F16 or BF16.
    pub(super) fn values(&self, name: &str) -> Result<Vec<f32>> {
        let wrong =
            |found: String| Error::field(&self.path, name, format!("{found}, expected F32, F16 or BF16"));
        let info = self.tensors.info(name).ok_or_else(|| wrong("missing".into()))?;
        let (start, end) = info.data_offsets;
        let data =
            self.map.get(self.start + start..self.start + end).ok_or_else(|| wrong("cut off".into()))?;
        match info.dtype {
            Dtype::F32 => Ok(data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()),
            Dtype::F16 => Ok(data.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect()),
            Dtype::BF16 => Ok(data.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect()),
            other => Err(wrong(format!("{other:?}"))),
        }
    }
}
