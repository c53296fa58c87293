//! The engine of wattle: loads a model and its adapters, compiles the model to a plan, runs the plan on a backend.

pub mod adapter;
pub mod backend;
mod engine;
mod error;
pub mod model;
mod options;
pub mod plan;
mod request;
mod runtime;
mod schedule;
mod stop;
pub mod tokenizer;

pub use engine::Engine;
pub use error::{Error, Result};
pub use options::{BackendChoice, CpuKernels, EngineOptions, PlanKind, Precision};
pub use request::{
    ActiveFrom, AdapterId, Control, Event, Finish, Generation, Lora, Path, Report, Request, Sampling,
};
pub use runtime::{RanStep, compile};
pub use wattle_shaders::{
    FROM_STATE, GENERATED, LONG_ROPE, LayerMask, MAX_LAYERS, NO_INDEX, OUTSIDE_LAYERS, Row, Sample, Sampled,
};
