//! One safetensors file, mapped. Its header is checked in full before any of it is believed; reading tensors
//! afterwards cannot leave the file.
//!
//! The format (<https://github.com/huggingface/safetensors>): the header's length (u64, little-endian), the header
//! (JSON: tensor → dtype, shape, range), the data, which the ranges cover without gap or overlap.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::tensor::TensorInfo;
use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use super::config::regular_file;
use super::matrix::{Bytes, Dtype};
use crate::error::{Error, Result};

/// The longest header that is read: 100,000 tensors have less, and parsing one takes a few times its length.
const MAX_HEADER: u64 = 16 << 20;

/// A mapped file and what its header lists.
pub(crate) struct TensorFile {
    path: PathBuf,
    data: Bytes,
    tensors: BTreeMap<String, TensorInfo>,
}

impl TensorFile {
    /// Maps a file and checks its header.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let len = regular_file(path)?.ok_or_else(|| Error::file(path, "no such file"))?;
        if len < 8 {
            return Err(Error::file(path, format!("{len} bytes are too few for a safetensors file")));
        }
        let file = File::open(path).map_err(|e| Error::file(path, e))?;
        // SAFETY: the map is only read, and only as bytes, of which every value is valid. It must not be changed or
        // cut by others while it lives, which no loader that maps can check; `Model::load` documents it.
        let map =
            unsafe { Mmap::map(&file) }.map_err(|e| Error::file(path, format!("cannot be mapped: {e}")))?;
        let (header, start) = header(path, &map)?;
        let Header(tensors) = serde_json::from_slice(header)
            .map_err(|e| Error::file(path, format!("the safetensors header is damaged: {e}")))?;
        let data_len = map.len() - start;
        check_ranges(path, &tensors, data_len)?;
        let data =
            Bytes::new(map).slice(start, data_len).ok_or_else(|| Error::file(path, "shrank while read"))?;
        Ok(Self { path: path.to_path_buf(), data, tensors })
    }

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The names of all tensors, sorted.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The shape of the tensor `name`, if there is one.
    pub(crate) fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|info| info.shape.as_slice())
    }

    /// The type of the tensor `name` as the file says it, if there is one.
    pub(crate) fn dtype(&self, name: &str) -> Option<safetensors::Dtype> {
        self.tensors.get(name).map(|info| info.dtype)
    }

    /// The type and the bytes (not necessarily aligned) of the tensor `name`, which must have `shape`.
    pub(crate) fn tensor(&self, name: &str, shape: &[usize]) -> Result<(Dtype, Bytes)> {
        self.typed(name, shape, "F32, F16 or BF16", |dtype| match dtype {
            safetensors::Dtype::F32 => Some(Dtype::F32),
            safetensors::Dtype::F16 => Some(Dtype::F16),
            safetensors::Dtype::BF16 => Some(Dtype::Bf16),
            _ => None,
        })
    }

    /// What `accept` makes of the type of the tensor `name`, which must be one of `types`, and its bytes (not
    /// necessarily aligned); it must have `shape`.
    pub(super) fn typed<T>(
        &self,
        name: &str,
        shape: &[usize],
        types: &str,
        accept: impl Fn(safetensors::Dtype) -> Option<T>,
    ) -> Result<(T, Bytes)> {
        let error = |reason: String| Error::field(&self.path, name, reason);
        let expected = format!("expected shape {shape:?} in {types}");
        let info = self.tensors.get(name).ok_or_else(|| error(format!("missing; {expected}")))?;
        let dtype = accept(info.dtype).ok_or_else(|| error(format!("is {:?}; {expected}", info.dtype)))?;
        if info.shape != shape {
            return Err(error(format!("has shape {:?}; {expected}", info.shape)));
        }
        let (start, end) = info.data_offsets;
        let data =
            self.data.slice(start, end - start).ok_or_else(|| error("lies outside the file".into()))?;
        Ok((dtype, data))
    }
}

/// Elements as f32, which holds all values of the other types.
pub(crate) fn to_f32(bytes: &[u8], dtype: Dtype) -> Vec<f32> {
    let halves = || bytes.as_chunks().0.iter().copied();
    match dtype {
        Dtype::F32 => bytes.as_chunks().0.iter().copied().map(f32::from_le_bytes).collect(),
        Dtype::F16 => halves().map(|x| half::f16::from_le_bytes(x).to_f32()).collect(),
        Dtype::Bf16 => halves().map(|x| half::bf16::from_le_bytes(x).to_f32()).collect(),
    }
}

/// The header's bytes and where the data begins.
fn header<'a>(path: &Path, map: &'a [u8]) -> Result<(&'a [u8], usize)> {
    let (length, rest) =
        map.split_first_chunk().ok_or_else(|| Error::file(path, "shrank while it was read"))?;
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER || length > rest.len() as u64 {
        let limit = MAX_HEADER.min(rest.len() as u64);
        return Err(Error::file(
            path,
            format!("claims a header of {length} bytes; at most {limit} are possible here"),
        ));
    }
    let length = length as usize;
    Ok((&rest[..length], 8 + length))
}

/// That ranges fit their shapes, and cover the data without gap or overlap.
fn check_ranges(path: &Path, tensors: &BTreeMap<String, TensorInfo>, data_len: usize) -> Result<()> {
    let mut sorted: Vec<_> = tensors.iter().collect();
    sorted.sort_by_key(|(_, info)| info.data_offsets);
    let mut covered = 0;
    for (name, info) in sorted {
        let error = |reason: String| Error::field(path, name, reason);
        let (start, end) = info.data_offsets;
        if end > data_len || start > end {
            return Err(error(format!("claims bytes {start} to {end} of {data_len}")));
        }
        if start != covered {
            return Err(error(format!(
                "begins at byte {start} where {covered} is next; tensors may not overlap or leave gaps"
            )));
        }
        let elements = info.shape.iter().try_fold(1usize, |n, &size| n.checked_mul(size));
        if elements.and_then(|n| n.checked_mul(info.dtype.bitsize())) != Some((end - start) * 8) {
            let (dtype, shape, len) = (info.dtype, &info.shape, end - start);
            return Err(error(format!("{dtype:?} {shape:?} does not take {len} bytes")));
        }
        covered = end;
    }
    if covered != data_len {
        let reason = format!("has {data_len} bytes of data where its tensors have {covered}; is it cut off?");
        return Err(Error::file(path, reason));
    }
    Ok(())
}

/// The header: unlike a map that serde makes, it refuses a tensor that is listed twice.
struct Header(BTreeMap<String, TensorInfo>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object that lists tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
        let mut tensors = BTreeMap::new();
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            match tensors.entry(name) {
                Entry::Vacant(entry) => entry.insert(map.next_value()?),
                Entry::Occupied(entry) => {
                    return Err(A::Error::custom(format!("tensor {} is listed twice", entry.key())));
                }
            };
        }
        Ok(Header(tensors))
    }
}
