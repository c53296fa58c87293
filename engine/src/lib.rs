//! The engine of wattle: loads a model and its adapters, compiles the model to a plan, runs the plan on a backend.

pub mod adapter;
pub mod backend;
mod error;
pub mod model;
pub mod plan;
pub mod tokenizer;

pub use error::{Error, Result};
pub use wattle_shaders::{
    FROM_STATE, GENERATED, LONG_ROPE, LayerMask, MAX_LAYERS, NO_INDEX, OUTSIDE_LAYERS, Row, Sample, Sampled,
};
