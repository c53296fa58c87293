//! The engine of wattle: loads a model and its adapters, compiles the model to a plan, runs the plan on a backend.

pub mod adapter;
pub mod backend;
pub mod cache;
mod engine;
mod error;
mod gate;
mod generation;
pub mod model;
mod options;
pub mod plan;
mod request;
mod runtime;
mod schedule;
mod service;
mod stop;
mod threads;
pub mod tokenizer;
mod vote;

pub use engine::{Engine, StepTimes};
pub use error::{Error, Result};
pub use gate::{Feature, Gate, LayerGate};
pub use generation::{Control, Event, Finish, Generation, Path, Report};
pub use options::{AdapterRoom, BackendChoice, CpuKernels, EngineOptions, KvType, PlanKind, Precision};
pub use request::{ActiveFrom, AdapterId, Closing, Lora, Priority, Request, Sampling};
pub use runtime::{RanStep, compile};
pub use service::{Client, Service, ServiceLoad, ServiceOptions, Token, Tokens};
pub use vote::{Answer, Tally, VoteRule};
pub use wattle_policy::{FixedPolicy, LoraDecision, LoraPolicy, RequestFacts};
pub use wattle_shaders::{
    FROM_STATE, GATED, GENERATED, LONG_ROPE, LayerMask, MAX_LAYERS, NO_INDEX, OUTSIDE_LAYERS, Row, Sample,
    Sampled,
};
