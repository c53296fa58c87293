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
        for id in op.inputs.iter().copied().chain(op.outputs()) {
            last_use[id.0 as usize] = index;
        }
    }
    let mut assignment = Assignment { buffer: vec![0; plan.tensors.len()], sizes: Vec::new() };
    // What no op writes is imported: it has a buffer of its own.
    for (index, tensor) in plan.tensors.iter().enumerate() {
        if !plan.ops.iter().any(|op| op.outputs().any(|id| id.0 as usize == index)) {
            assignment.buffer[index] = assignment.sizes.len();
            assignment.sizes.push(bytes(tensor));
        }
    }
    let mut free: VecDeque<usize> = VecDeque::new();
    for (index, op) in plan.ops.iter().enumerate() {
        for output in op.outputs() {
            let needed = bytes(plan.tensor(output));
            let fitting = free.iter().position(|&buffer| assignment.sizes[buffer] >= needed);
            let buffer = fitting.and_then(|at| free.remove(at)).unwrap_or_else(|| {
                assignment.sizes.push(needed);
                assignment.sizes.len() - 1
            });
            assignment.buffer[output.0 as usize] = buffer;
        }
        let mut done: Vec<_> = op.inputs.iter().copied().chain(op.outputs()).collect();
        done.sort();
        done.dedup();
        let done = done.into_iter().filter(|id| last_use[id.0 as usize] == index);
        free.extend(done.map(|id| assignment.buffer[id.0 as usize]));
    }
    assignment
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Extent, KvShape, Op, OpKind, TensorId};

    /// t0 → add → t1 → add → t2 …: each op reads the two tensors before its own.
    fn chain(ops: usize) -> Plan {
        let tensor = |i: usize| Tensor { name: format!("t{i}"), extent: Extent::Rows, width: 1 + i % 3 };
        let op = |i: usize| {
            let inputs = vec![TensorId(i as u32), TensorId(i as u32 + 1)];
            let output = Some(TensorId(i as u32 + 2));
            Op { name: format!("op{i}"), kind: OpKind::Add, inputs, output, carry: None }
        };
        let kv = KvShape { layers: 0, heads: 1, kv_heads: 1, head_dim: 1, store: Default::default() };
        let tensors = (0..ops + 2).map(tensor).collect();
        let factors = Default::default();
        Plan { ops: (0..ops).map(op).collect(), tensors, kv, factors, rope: None, vocab: 1 }
    }

    #[test]
    fn no_op_writes_what_it_reads_and_the_buffer_that_was_freed_last_is_reused_last() {
        let plan = chain(12);
        let Assignment { buffer, sizes } = assign(&plan, |tensor| tensor.width as u64);
        for (index, tensor) in plan.tensors.iter().enumerate() {
            assert!(sizes[buffer[index]] >= tensor.width as u64);
        }
        for op in &plan.ops {
            let output = buffer[op.output.unwrap().0 as usize];
            assert!(op.inputs.iter().all(|id| buffer[id.0 as usize] != output), "{}", op.name);
        }
        assert!(sizes.len() < plan.tensors.len(), "nothing was reused");
        let same = assign(&plan, |_| 4).buffer;
        // Three tensors live at a time, and the one that was just freed is not the next one's.
        assert!(same.windows(4).all(|four| four[3] == four[0] || !four[..3].contains(&four[3])), "{same:?}");
    }
}
