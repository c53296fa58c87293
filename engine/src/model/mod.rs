//! Models: config.json → [`Spec`], safetensors → [`Weights`].

mod matrix;
mod spec;

pub use matrix::{Bytes, Dtype, Matrix, Part, Vector};
pub use spec::{
    Activation, Family, LayerWeights, Linear, LongRope, NormKind, NormWeights, Positions, Rope, Spec, Weights,
};
