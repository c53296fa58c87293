//! Models: config.json → [`Spec`], safetensors → [`Weights`].

mod matrix;
mod spec;

pub use matrix::{Bytes, Dtype, Matrix, Part, Vector};
pub use spec::{
    Activation, Family, LayerWeights, Linear, LongRope, NormKind, NormWeights, Positions, Rope, Spec, Weights,
};

use std::path::PathBuf;

/// A loaded model.
#[derive(Clone, Debug)]
pub struct Model {
    /// Its shape and rules.
    pub spec: Spec,
    /// Its weights.
    pub weights: Weights,
    /// Where it was loaded from.
    pub dir: PathBuf,
}

impl Model {
    /// Loads a directory.
    pub fn load(dir: &std::path::Path) -> crate::Result<Self> {
        Err(crate::Error::file(dir, "not there yet"))
    }
}
