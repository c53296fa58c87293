//! Decisions, without a GPU, a clock or a file: what ops cost in bytes, time, energy, heat and carbon on a device, what
//! LoRA a request gets, and the policies that pick LoRA layers from that.

mod agent;
pub mod carbon;
mod cost;
pub mod energy;
pub mod environment;
mod error;
mod grid;
mod lora;
mod network;
pub mod observation;
mod profile;
mod quality;
mod random;
pub mod reward;
pub mod scheme;
pub mod simulate;
pub mod thermal;
pub mod workload;
pub mod world;

pub use agent::{Decision, Description, MAX_LENGTH, METADATA, TrainedPolicy, Training};
pub use carbon::Carbon;
pub use cost::{CostSource, OpCost, RowShape, StepShape, layer_of};
pub use energy::{Coefficients, OpEnergy, Roofline, Tier};
pub use error::{Error, Result};
pub use grid::Grid;
pub use lora::{FixedPolicy, LoraDecision, LoraPolicy, RequestFacts};
pub use network::Network;
pub use profile::{Figure, Profile};
pub use quality::{Measured, Quality, StandIn};
pub use random::Random;
