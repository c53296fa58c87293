//! The weights of a model directory: one safetensors file, or several with an index.

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use super::aligned::{aligned, transposed};
use super::config::read_bounded;
use super::matrix::{Bytes, Dtype, Matrix, Vector};
use super::tensors::{TensorFile, to_f32};
use super::weights::{Order, Source};
use crate::error::{Error, Result};
use crate::threads;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// Index files list a line per tensor.
const MAX_INDEX: u64 = 16 << 20;

/// All tensors of a directory.
pub(super) struct Checkpoint {
    /// The file that errors about a missing tensor name.
    path: PathBuf,
    files: Vec<TensorFile>,
    /// Which of the files has a tensor; `None` where there is but one.
    index: Option<HashMap<String, usize>>,
}

/// model.safetensors.index.json.
#[derive(Deserialize)]
struct Index {
    weight_map: HashMap<String, String>,
}

impl Checkpoint {
    /// Maps the safetensors files of a directory. Where both forms are there, the single file counts.
    pub(super) fn open(dir: &Path) -> Result<Self> {
        let single = dir.join(SINGLE);
        if single.exists() {
            return Ok(Self { files: vec![TensorFile::open(&single)?], path: single, index: None });
        }
        let path = dir.join(INDEX);
        let text = read_bounded(&path, MAX_INDEX)?.ok_or_else(|| no_weights(dir))?;
        let Index { weight_map } = serde_json::from_slice(&text)
            .map_err(|e| Error::file(&path, format!("not an index with a weight_map: {e}")))?;
        let mut numbers = HashMap::new();
        let mut files = Vec::new();
        let mut index = HashMap::with_capacity(weight_map.len());
        for (tensor, file) in weight_map {
            let number = match numbers.get(&file) {
                Some(&number) => number,
                None => {
                    files.push(open_shard(dir, &path, &tensor, &file)?);
                    numbers.insert(file, files.len() - 1);
                    files.len() - 1
                }
            };
            index.insert(tensor, number);
        }
        Ok(Self { path, files, index: Some(index) })
    }

    /// The file that has the tensor, if one is named.
    fn file(&self, name: &str) -> Option<&TensorFile> {
        match &self.index {
            Some(index) => index.get(name).and_then(|&number| self.files.get(number)),
            None => self.files.first(),
        }
    }

    /// The type of the tensor `name` as its file says it, if there is one.
    pub(super) fn dtype(&self, name: &str) -> Option<safetensors::Dtype> {
        self.file(name)?.dtype(name)
    }

    /// The shape of the tensor `name`, if there is one.
    pub(super) fn shape(&self, name: &str) -> Option<&[usize]> {
        self.file(name)?.shape(name)
    }

    /// See [`TensorFile::tensor`].
    pub(super) fn tensor(&self, name: &str, shape: &[usize]) -> Result<(Dtype, Bytes)> {
        self.listed(name, shape)?.tensor(name, shape)
    }

    /// The bytes (not necessarily aligned) of the tensor `name`, which must have `shape` and be of type `dtype`.
    pub(super) fn exactly(&self, name: &str, shape: &[usize], dtype: safetensors::Dtype) -> Result<Bytes> {
        let accept = |found| (found == dtype).then_some(());
        let typed = self.listed(name, shape)?.typed(name, shape, &format!("{dtype:?}"), accept)?;
        Ok(typed.1)
    }

    /// The file that is said to have the tensor.
    fn listed(&self, name: &str, shape: &[usize]) -> Result<&TensorFile> {
        self.file(name)
            .ok_or_else(|| self.error(name, format!("missing; expected a tensor of shape {shape:?}")))
    }

    /// An error about a tensor; it names the tensor's file.
    pub(super) fn error(&self, name: &str, reason: impl ToString) -> Error {
        Error::field(self.file(name).map_or(self.path.as_path(), TensorFile::path), name, reason)
    }
}

impl Source for Checkpoint {
    fn has(&self, name: &str) -> bool {
        self.shape(name).is_some()
    }

    fn matrix(&mut self, name: &str, rows: usize, cols: usize, order: Order) -> Result<Matrix> {
        let (dtype, data) = match order {
            Order::OutIn => self.tensor(name, &[rows, cols])?,
            Order::InOut => self.tensor(name, &[cols, rows])?,
        };
        let data = match order {
            Order::OutIn => aligned(data, dtype),
            Order::InOut => {
                threads::ready()?;
                transposed(data.as_ref(), cols, rows, dtype)
            }
        };
        data.and_then(|data| Matrix::new(name, rows, cols, dtype, data))
            .ok_or_else(|| self.error(name, format!("no memory for a copy of [{rows}, {cols}]")))
    }

    fn vector(&mut self, name: &str, len: usize) -> Result<Vector> {
        let (dtype, data) = self.tensor(name, &[len])?;
        Ok(Vector { name: name.into(), values: to_f32(data.as_ref(), dtype) })
    }
}

fn open_shard(dir: &Path, index: &Path, tensor: &str, file: &str) -> Result<TensorFile> {
    let error = |reason: String| Error::field(index, tensor, reason);
    let inside = Path::new(file).components().all(|part| matches!(part, Component::Normal(_)));
    if file.is_empty() || !inside {
        return Err(error(format!("is said to be in {file:?}; expected a file of the model's directory")));
    }
    let path = dir.join(file);
    if !path.exists() {
        return Err(error(format!("is said to be in {file:?}, which is missing")));
    }
    TensorFile::open(&path)
}

/// Why a directory has no weights that can be read.
fn no_weights(dir: &Path) -> Error {
    let pickled =
        ["pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "model.pth", "consolidated.00.pth"];
    match pickled.iter().find(|name| dir.join(name).exists()) {
        Some(name) => Error::file(
            dir.join(name),
            format!(
                "a pickle, which can run code when read; only safetensors are accepted. Convert it once with: \
                 python -c \"from transformers import AutoModelForCausalLM as M; d = r'{}'; \
                 M.from_pretrained(d, torch_dtype='auto').save_pretrained(d, safe_serialization=True)\"",
                dir.display()
            ),
        ),
        None => Error::file(dir, format!("has no weights; expected {SINGLE}, or {INDEX} and its shards")),
    }
}
