//! Decisions, without a GPU, a clock or a file: costs of ops, and (later) policies and calibrators.

mod cost;

pub use cost::{CostSource, OpCost, Prefix, RowShape, StepShape};
