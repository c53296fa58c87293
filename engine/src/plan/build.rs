//! Spec and weights → the plain plan.

use super::{LoraCapacity, Plan};
use crate::model::{Spec, Weights};

/// The plain plan of a model, one mathematical step per op; with room for LoRA on every projection if `lora` has any.
pub fn build(_spec: &Spec, _weights: &Weights, _lora: LoraCapacity) -> Plan {
    unimplemented!()
}
