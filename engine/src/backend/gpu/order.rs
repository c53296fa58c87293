//! Matrices whose columns are in another order than their inputs (act-order): a launch of its own brings the inputs into
//! that order, so that projections read them as they read any others.

use wattle_shaders::params;

use super::compile::Compiler;
use super::launch::{Grid, Launch, extent_code, read, stride, write};
use super::prepared::tensor_bytes;
use crate::backend::Capacity;
use crate::error::Result;
use crate::plan::Plan;

/// Bytes of the inputs of any one op whose matrices have an order; `None` where no op has. One buffer serves all of
/// them, one after the other.
pub(super) fn bytes(plan: &Plan, capacity: Capacity) -> Option<u64> {
    let ordered = plan.ops.iter().filter(|op| op.kind.order().is_some());
    let tensors = ordered.filter_map(|op| op.inputs.first());
    tensors.map(|&id| tensor_bytes(plan.tensor(id), capacity)).max()
}

impl Compiler<'_> {
    /// The launch that brings the op's inputs into order, if they need it.
    pub fn order(&mut self) -> Result<Option<Launch>> {
        let Some(order) = self.op.kind.order() else { return Ok(None) };
        let inputs = self.weights.values(self.gpu, "order", order.inputs())?;
        let tensor = self.tensor_in(0);
        let (width, extent) = (tensor.width, tensor.extent);
        let params = params::ProjectOrdered {
            width: width as u32,
            stride: stride(width) as u32,
            extent: extent_code(extent),
        };
        let x = &self.activations[self.op.inputs[0].0 as usize];
        let bindings = vec![read(1, &inputs), read(2, x), write(3, self.ordered)];
        let launch = Launch::new(self, params, bindings, Grid::Elements(stride(width) as u64))?;
        Ok(Some(Launch { kernel: self.variant("project__ordered")?, extent, ..launch }))
    }
}
