//! Models: config.json → [`Spec`], safetensors → [`Weights`].

mod aligned;
mod checkpoint;
mod config;
mod families;
mod format;
mod gather;
mod matrix;
mod pooled;
mod published;
mod quantize;
mod rope;
mod rows;
mod shapes;
mod spec;
mod stored;
mod tensors;
#[cfg(test)]
mod tests;
mod view;
mod weights;

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::threads;
pub use aligned::AlignedBytes;
use checkpoint::Checkpoint;
pub(crate) use config::{Fields, read_bounded};
pub use format::{BLOCK, Bits, Format, INT4, INT8, Offset, PANEL, PanelFormat, Q4_0, Q4_1, Q8_0};
pub use matrix::{Bytes, Dtype, Matrix, Part, Vector};
use published::Published;
pub use quantize::Quant;
#[cfg(feature = "gpu")]
pub(crate) use quantize::quantize;
pub use shapes::shapes;
pub use spec::{
    Activation, Family, LayerWeights, Linear, LongRope, NormKind, NormWeights, Positions, Rope, Spec, Weights,
};
pub(crate) use tensors::{TensorFile, to_f32};
pub(crate) use view::weight;

/// config.json and generation_config.json are read up to this length.
const MAX_CONFIG: u64 = 4 << 20;

/// A model's shape and weights.
#[derive(Clone, Debug)]
pub struct Model {
    /// Shape and rules.
    pub spec: Spec,
    /// Weights, as ranges of mapped files wherever their layout allows.
    pub weights: Weights,
    /// Where it was loaded from (its tokenizer is there too); empty for random weights.
    pub dir: PathBuf,
}

impl Model {
    /// Loads an unmodified Hugging Face directory: config.json, safetensors, and generation_config.json if there is one.
    ///
    /// Weights are mapped, not read: they cost no anonymous memory, except those of GPT-2, which are transposed, those
    /// that others have quantized, which are laid out anew, and tensors that the file misaligns. The files must not
    /// change while the model (or a clone of any of its matrices) lives; one that is cut short then ends the process.
    ///
    /// # Errors
    /// [`Error::File`] and [`Error::Field`] name what is missing, damaged, contradictory or not supported. All sizes
    /// are checked before anything of their order is allocated.
    pub fn load(dir: &Path) -> Result<Self> {
        if !dir.is_dir() {
            return Err(Error::file(dir, "not a directory; expected a model directory with config.json"));
        }
        let path = dir.join("config.json");
        let config = fields(&path)?.ok_or_else(|| match dir.join("adapter_config.json").exists() {
            true => {
                Error::file(dir, "an adapter, not a model: it has adapter_config.json and no config.json")
            }
            false => Error::file(&path, "no such file; a model directory has one"),
        })?;
        let generation = fields(&dir.join("generation_config.json"))?;
        let (spec, layout) = families::read(&config, generation.as_ref())?;
        let quantized = published::read(&config)?;
        let weights =
            weights::assemble(&spec, &layout, &mut Published::new(Checkpoint::open(dir)?, quantized))?;
        Ok(Self { spec, weights, dir: dir.to_path_buf() })
    }

    /// A model of a known shape (one of [`shapes`]) with random matrices of type `dtype`, in memory. Activations stay
    /// finite. The same seed gives the same weights.
    ///
    /// # Errors
    /// [`Error::Value`] when the shape is not known or memory is too small for it.
    pub fn random(shape: &str, dtype: Dtype, seed: u64) -> Result<Self> {
        Self::of_shape(shape, usize::MAX, &mut shapes::Random::new(dtype, seed))
    }

    /// The same with the first layer alone: all layers of a model have the same shapes.
    ///
    /// # Errors
    /// As for [`Self::random`].
    pub fn random_layer(shape: &str, dtype: Dtype, seed: u64) -> Result<Self> {
        Self::of_shape(shape, 1, &mut shapes::Random::new(dtype, seed))
    }

    /// A model of a known shape with random matrices that are quantized already; what stays dense is bf16. They are
    /// overlapping ranges of a few random blocks: the host keeps hardly more than the largest matrix has, and a device
    /// that copies its weights all of the model's bytes. A CPU, which reads them in place, would find them in its
    /// caches: measure it with [`Self::random`] and [`Self::quantized`].
    ///
    /// # Errors
    /// [`Error::Value`] when the shape is not known or memory is too small for it.
    pub fn random_quantized(shape: &str, quant: Quant, seed: u64) -> Result<Self> {
        Self::of_shape(shape, usize::MAX, &mut pooled::Pooled::new(quant, Dtype::Bf16, seed))
    }

    /// With no more than so many layers.
    fn of_shape(shape: &str, layers: usize, source: &mut dyn weights::Source) -> Result<Self> {
        threads::ready()?;
        let config = Fields::parse(Path::new(shape), shapes::config(shape)?.as_bytes())?;
        let (mut spec, layout) = families::read(&config, None)?;
        spec.truncate(layers);
        let weights = weights::assemble(&spec, &layout, source)?;
        Ok(Self { spec, weights, dir: PathBuf::new() })
    }

    /// A model of a known shape (one of [`shapes`]) whose weights are all 0, f16 or quantized: its plan and what that
    /// costs are the real ones, and big matrices take no memory until they are read.
    ///
    /// # Errors
    /// [`Error::Value`] when the shape is not known or addresses are too few for it.
    pub fn blank(shape: &str, quant: Option<Quant>) -> Result<Self> {
        let config = Fields::parse(Path::new(shape), shapes::config(shape)?.as_bytes())?;
        let (spec, layout) = families::read(&config, None)?;
        let weights = weights::assemble(&spec, &layout, &mut shapes::Blank)?;
        let model = Self { spec, weights, dir: PathBuf::new() };
        match quant {
            Some(quant) => model.stored(&|matrix, outside| quantize::blank(matrix, quant.format(outside))),
            None => Ok(model),
        }
    }
}

/// The fields of a JSON file, if it is there.
fn fields(path: &Path) -> Result<Option<Fields>> {
    read_bounded(path, MAX_CONFIG)?.map(|text| Fields::parse(path, &text)).transpose()
}
