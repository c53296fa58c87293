//! wattle's own quantized checkpoints: a directory like any other, whose config.json says so
//! (`"quantization_config": {"quant_method": "wattle", "format": "q4_0", "version": 1}`), with panels in its
//! model.safetensors, which are mapped and read as they lie.
//!
//! Tensors have the names of the checkpoint that was quantized. In place of a quantized matrix `NAME` there are
//! `NAME.codes` U8 \[panels, blocks, bytes of a block\], `NAME.scales` \[panels, groups, 16\] and, where the format has
//! minima, `NAME.minima` F16 of the same shape; see [`wattle_kernels_cpu::panels`]. Vectors are F32. Codes come first
//! and begin at a multiple of 64 bytes, so that no vector load crosses two cache lines.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use serde_json::json;

use super::aligned::aligned;
use super::checkpoint::Checkpoint;
use super::config::Fields;
use super::format::{BLOCK, Format, Offset, PANEL, PanelFormat};
use super::matrix::{Bytes, Dtype, Matrix, Vector};
use super::quantize::{Quant, quantize};
use super::weights::{Order, Source};
use super::{Model, families, fields, published, weights};
use crate::error::{Error, Result};

/// What `quant_method` says.
pub(super) const METHOD: &str = "wattle";

/// Bytes to which the data of a file is aligned.
const ALIGNMENT: usize = 64;

/// The format of a matrix of a checkpoint by its name; `None` for those that stay dense.
pub(super) fn format_of(name: &str, quant: Quant) -> Option<PanelFormat> {
    const POSITIONS: [&str; 2] = ["wpe.", "embed_positions."];
    const OUTSIDE: [&str; 5] = ["wte.", "embed_tokens.", "lm_head.", "project_in.", "project_out."];
    let is_one_of = |parts: &[&str]| parts.iter().any(|part| name.contains(part));
    match (is_one_of(&POSITIONS), is_one_of(&OUTSIDE)) {
        (true, _) => None,
        (false, true) => Some(quant.outside()),
        (false, false) => Some(quant.layers()),
    }
}

/// Shapes of the arrays of a quantized matrix.
fn shapes(format: &PanelFormat, rows: usize, cols: usize) -> [Vec<usize>; 2] {
    let panels = rows.div_ceil(PANEL);
    let codes = vec![panels, cols.div_ceil(BLOCK), format.bits.block_bytes()];
    [codes, vec![panels, format.groups(cols), PANEL]]
}

/// What a file of wattle's own was quantized to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stored(Quant);

impl Stored {
    /// What follows a module's name and a dot in the name of its codes.
    pub const CODES: &str = "weight.codes";

    /// Reads the `quantization_config`.
    pub fn read(config: &Fields) -> Result<Self> {
        let accepted = Quant::ALL.map(Quant::name).join(", ");
        let format = config.text("format")?.unwrap_or_default();
        let quant = Quant::ALL.into_iter().find(|quant| quant.name() == format);
        let quant =
            quant.ok_or_else(|| config.error("format", format!("{format:?}; accepted: {accepted}")))?;
        if config.size("version", 0..=usize::MAX)? != Some(1) {
            return Err(config.error("version", "only version 1 is known"));
        }
        Ok(Self(quant))
    }

    /// The matrix \[rows, cols\] of a quantized module.
    pub fn matrix(self, from: &Checkpoint, module: &str, rows: usize, cols: usize) -> Result<Matrix> {
        let name = format!("{module}.weight");
        let format = format_of(&name, self.0)
            .ok_or_else(|| from.error(&name, "a position table, which stays dense, has codes"))?;
        let [codes, scales] = shapes(&format, rows, cols);
        let array = |suffix: &str, shape: &[usize], dtype: safetensors::Dtype| {
            from.exactly(&format!("{name}.{suffix}"), shape, dtype)
        };
        let copied = |data: Bytes, dtype: Dtype| {
            aligned(data, dtype).ok_or_else(|| from.error(&name, "no memory for a copy"))
        };
        let codes = array("codes", &codes, safetensors::Dtype::U8)?;
        let offsets = match format.offset {
            Offset::Minimum => copied(array("minima", &scales, safetensors::Dtype::F16)?, Dtype::F16)?,
            _ if from.has(&format!("{name}.minima")) => {
                return Err(from.error(&name, format!("has minima, which {} has not", self.0.name())));
            }
            _ => Bytes::new([]),
        };
        let scales = copied(array("scales", &scales, stored_type(format.scale))?, format.scale)?;
        Matrix::panels(&name, rows, cols, format, codes, [scales, offsets])
            .ok_or_else(|| from.error(&name, "its arrays do not fit each other"))
    }
}

fn stored_type(dtype: Dtype) -> safetensors::Dtype {
    match dtype {
        Dtype::F32 => safetensors::Dtype::F32,
        Dtype::F16 => safetensors::Dtype::F16,
        Dtype::Bf16 => safetensors::Dtype::BF16,
    }
}

/// Hands tensors on, and keeps what is to be written.
struct Recorder<'a> {
    inner: &'a mut dyn Source,
    quant: Quant,
    kept: BTreeMap<String, Kept>,
}

enum Kept {
    Matrix(Arc<Matrix>),
    Vector(Vector),
}

impl Source for Recorder<'_> {
    fn has(&self, name: &str) -> bool {
        self.inner.has(name)
    }

    fn matrix(&mut self, name: &str, rows: usize, cols: usize, order: Order) -> Result<Matrix> {
        let dense = Arc::new(self.inner.matrix(name, rows, cols, order)?);
        let kept = match format_of(name, self.quant) {
            Some(format) => quantize(&dense, format)?,
            None => Arc::clone(&dense),
        };
        self.kept.insert(name.into(), Kept::Matrix(kept));
        Ok(Arc::unwrap_or_clone(dense))
    }

    fn vector(&mut self, name: &str, len: usize) -> Result<Vector> {
        let vector = self.inner.vector(name, len)?;
        self.kept.insert(name.into(), Kept::Vector(vector.clone()));
        Ok(vector)
    }
}

/// A tensor of the file: its name, type, shape and bytes.
type Entry<'a> = (String, safetensors::Dtype, Vec<usize>, &'a [u8]);

fn entries<'a>(name: &str, kept: &'a Kept) -> Vec<Entry<'a>> {
    match kept {
        Kept::Vector(vector) => {
            let bytes = bytemuck::cast_slice(&vector.values);
            vec![(name.into(), safetensors::Dtype::F32, vec![vector.values.len()], bytes)]
        }
        Kept::Matrix(matrix) => matrix
            .parts
            .iter()
            .flat_map(|part| match (matrix.format, &part.scales) {
                (Format::Panels(format), Some([scales, offsets])) => {
                    let [codes, groups] = shapes(&format, matrix.rows, matrix.cols);
                    let array = |suffix: &str| format!("{name}.{suffix}");
                    let mut arrays = vec![
                        (array("codes"), safetensors::Dtype::U8, codes, part.data.as_ref()),
                        (array("scales"), stored_type(format.scale), groups.clone(), scales.as_ref()),
                    ];
                    if format.offset == Offset::Minimum {
                        arrays.push((array("minima"), safetensors::Dtype::F16, groups, offsets.as_ref()));
                    }
                    arrays
                }
                (Format::Dense(dtype), _) => {
                    vec![(name.into(), stored_type(dtype), vec![part.rows, matrix.cols], part.data.as_ref())]
                }
                (Format::Panels(_), None) => Vec::new(),
            })
            .collect(),
    }
}

/// Writes a safetensors file: codes first, then the elements in the order of their sizes, so that all are aligned.
fn write_file(path: &Path, mut entries: Vec<Entry>) -> std::io::Result<()> {
    let place = |dtype: safetensors::Dtype| match dtype {
        safetensors::Dtype::U8 => 0,
        safetensors::Dtype::F32 => 1,
        _ => 2,
    };
    entries.sort_by(|a, b| (place(a.1), &a.0).cmp(&(place(b.1), &b.0)));
    let (mut header, mut end) = (serde_json::Map::new(), 0);
    header.insert("__metadata__".into(), json!({"format": METHOD}));
    for (name, dtype, shape, bytes) in &entries {
        let offsets = [end, end + bytes.len()];
        header.insert(name.clone(), json!({"dtype": dtype, "shape": shape, "data_offsets": offsets}));
        end += bytes.len();
    }
    let mut header = serde_json::to_vec(&header)?;
    header.resize((8 + header.len()).next_multiple_of(ALIGNMENT) - 8, b' ');
    let mut file = BufWriter::new(File::create_new(path)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    for (_, _, _, bytes) in &entries {
        file.write_all(bytes)?;
    }
    file.into_inner()?.sync_all()
}

fn there(file: &Path) -> Error {
    Error::file(file, "is there already; nothing was overwritten")
}

/// Writes a new file, of which nothing is left if that fails.
fn written(file: &Path, write: impl FnOnce(&Path) -> std::io::Result<()>) -> Result<()> {
    write(file).map_err(|error| {
        if error.kind() == std::io::ErrorKind::AlreadyExists {
            return there(file);
        }
        // Its own failure would say less than the first.
        let _ = std::fs::remove_file(file);
        Error::file(file, format!("cannot be written: {error}"))
    })
}

impl Model {
    /// Quantizes the checkpoint in `dir` and writes config.json and model.safetensors to the directory `out`, which is
    /// made if it is not there. [`Model::load`] reads the result by mapping it.
    ///
    /// # Errors
    /// As for [`Model::load`] and [`Model::quantized`]; [`Error::File`] when a file cannot be written, or is there
    /// already: nothing is overwritten. A file that could not be written whole is removed again.
    pub fn quantize_to(dir: &Path, quant: Quant, out: &Path) -> Result<()> {
        let path = dir.join("config.json");
        let config =
            fields(&path)?.ok_or_else(|| Error::file(&path, "no such file; a model directory has one"))?;
        if published::read(&config)?.is_some() {
            return Err(config.error("quantization_config", "is quantized already"));
        }
        let files = ["config.json", "model.safetensors"].map(|name| out.join(name));
        if let Some(file) = files.iter().find(|file| file.exists()) {
            return Err(there(file));
        }
        let (spec, layout) = families::read(&config, None)?;
        let inner = &mut Checkpoint::open(dir)?;
        let mut recorder = Recorder { inner, quant, kept: BTreeMap::new() };
        weights::assemble(&spec, &layout, &mut recorder)?;
        let entries = recorder.kept.iter().flat_map(|(name, kept)| entries(name, kept)).collect();
        let method = json!({"quant_method": METHOD, "format": quant.name(), "version": 1});
        let text = config.with("quantization_config", method)?;
        std::fs::create_dir_all(out).map_err(|error| Error::file(out, error))?;
        // The weights first: without a config.json nobody takes what a crash leaves for a model.
        written(&files[1], |file| write_file(file, entries))?;
        written(&files[0], |file| File::create_new(file)?.write_all(text.as_ref()))
    }
}
