//! The same plan with gates: an op before each gated layer, and nothing else that is different.

use std::sync::Arc;

use super::{Extent, Op, OpKind, Plan, Tensor, TensorId};
use crate::gate::{Gate, LayerGate};

impl Plan {
    /// This plan with a gate before each layer that has one; it reads what enters the layer.
    pub fn with_gate(&self, gate: &Gate) -> Plan {
        let mut plan = self.clone();
        for layer in gate.layers() {
            plan.insert_gate(layer);
        }
        plan
    }

    fn insert_gate(&mut self, gate: &Arc<LayerGate>) {
        let prefix = format!("layers.{}.", gate.layer);
        // A layer begins with an op on the residual stream: its norm, or what has the norm in it.
        let first = self.ops.iter().position(|op| op.name.starts_with(&prefix));
        let Some((at, x)) = first.and_then(|at| Some((at, *self.ops[at].inputs.first()?))) else { return };
        let output = TensorId(self.tensors.len() as u32);
        let name = format!("{prefix}lora_gate");
        self.tensors.push(Tensor { name: name.clone(), extent: Extent::Rows, width: 1 });
        let kind = OpKind::Gate(Arc::clone(gate));
        self.ops.insert(at, Op { name, kind, inputs: vec![x], output: Some(output), carry: None });
    }
}
