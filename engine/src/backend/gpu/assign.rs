//! Which tensor lies in which buffer.

use std::collections::VecDeque;

use crate::plan::{Plan, Tensor};

/// Buffers of a plan's activations.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Assignment {
    /// Per tensor, the index of its buffer.
    pub buffer: Vec<usize>,
    /// Bytes of each buffer.
    pub sizes: Vec<u64>,
}

/// Gives every tensor a buffer while it lives, from the op that writes it to the last that reads it.
///
/// A device waits between two dispatches when one writes a buffer that the other uses. So an op never writes a buffer
/// that it reads, and among free buffers that are large enough the one that was freed first is taken: its last user
/// has most likely finished.
pub(super) fn assign(plan: &Plan, bytes: impl Fn(&Tensor) -> u64) -> Assignment {
    let mut last_use = vec![0; plan.tensors.len()];
    for (index, op) in plan.ops.iter().enumerate() {
        for id in op.inputs.iter().chain(&op.output) {
            last_use[id.0 as usize] = index;
        }
    }
    let mut assignment = Assignment { buffer: vec![0; plan.tensors.len()], sizes: Vec::new() };
    // What no op writes is imported: it has a buffer of its own.
    for (index, tensor) in plan.tensors.iter().enumerate() {
        if !plan.ops.iter().any(|op| op.output.is_some_and(|id| id.0 as usize == index)) {
            assignment.buffer[index] = assignment.sizes.len();
            assignment.sizes.push(bytes(tensor));
        }
    }
    let mut free: VecDeque<usize> = VecDeque::new();
    for (index, op) in plan.ops.iter().enumerate() {
        if let Some(output) = op.output {
            let needed = bytes(plan.tensor(output));
            let fitting = free.iter().position(|&buffer| assignment.sizes[buffer] >= needed);
            let buffer = fitting.and_then(|at| free.remove(at)).unwrap_or_else(|| {
                assignment.sizes.push(needed);
                assignment.sizes.len() - 1
            });
            assignment.buffer[output.0 as usize] = buffer;
        }
        let mut done: Vec<_> = op.inputs.iter().chain(&op.output).collect();
        done.sort();
        done.dedup();
        let done = done.into_iter().filter(|id| last_use[id.0 as usize] == index);
        free.extend(done.map(|id| assignment.buffer[id.0 as usize]));
    }
    assignment
}
