//! Decisions, without a GPU, a clock or a file: costs of ops, what LoRA a request gets, and (later) learned policies and
//! calibrators.

mod cost;
mod lora;

pub use cost::{CostSource, OpCost, RowShape, StepShape};
pub use lora::{FixedPolicy, LoraDecision, LoraPolicy, RequestFacts};
