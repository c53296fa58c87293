//! Which activation lies in which buffer.

use crate::error::Result;
use crate::plan::{Extent, Op, Plan, TensorId};

use super::memory::Buffer;
use crate::backend::Capacity;

/// The buffers of a plan's activations. Tensors that are never needed at the same time share one.
pub(super) struct Activations {
    /// Per tensor.
    buffer_of: Vec<usize>,
    buffers: Vec<Buffer>,
}

impl Activations {
    /// Buffers for a plan of this capacity.
    pub fn new(plan: &Plan, capacity: Capacity, guards: bool) -> Result<Self> {
        let (buffer_of, sizes) = assign(plan, |id| {
            let tensor = plan.tensor(id);
            let lines = match tensor.extent {
                Extent::Rows => capacity.rows,
                Extent::Samples => capacity.samples,
            };
            lines.saturating_mul(tensor.width)
        });
        let buffer = |size: usize| Buffer::new("activations", Some(size), guards);
        Ok(Self { buffer_of, buffers: sizes.into_iter().map(buffer).collect::<Result<_>>()? })
    }

    /// The elements of a tensor's buffer; only the first rows × width are the tensor's.
    pub fn get(&self, id: TensorId) -> &[f32] {
        self.buffers[self.buffer_of[id.0 as usize]].values()
    }

    /// As [`Self::get`], to write to.
    pub fn get_mut(&mut self, id: TensorId) -> &mut [f32] {
        self.buffers[self.buffer_of[id.0 as usize]].values_mut()
    }

    /// Lends out the buffer of a tensor, so that an op can write to it while it reads others.
    pub fn take(&mut self, id: TensorId) -> Option<Buffer> {
        let empty = Buffer::new("nothing", Some(0), false).ok()?;
        Some(std::mem::replace(&mut self.buffers[self.buffer_of[id.0 as usize]], empty))
    }

    /// Takes back what [`Self::take`] lent.
    pub fn put(&mut self, id: TensorId, buffer: Buffer) {
        self.buffers[self.buffer_of[id.0 as usize]] = buffer;
    }

    /// Fills everything with NaN, so that what is read without having been written shows.
    pub fn poison(&mut self) {
        self.buffers.iter_mut().for_each(|buffer| buffer.values_mut().fill(f32::NAN));
    }

    /// Tensors of the first buffer whose guard words were overwritten.
    pub fn broken(&self) -> Option<Vec<usize>> {
        let broken = self.buffers.iter().position(|buffer| !buffer.intact())?;
        Some((0..self.buffer_of.len()).filter(|&tensor| self.buffer_of[tensor] == broken).collect())
    }

    /// Bytes of all buffers.
    pub fn bytes(&self) -> u64 {
        self.buffers.iter().map(|buffer| buffer.len() as u64 * 4).sum()
    }
}

/// Gives each tensor a buffer: a free one that is large enough with the least excess, else the largest free one
/// (which then grows), else a new one. Returns the buffer of each tensor and the size of each buffer.
fn assign(plan: &Plan, size: impl Fn(TensorId) -> usize) -> (Vec<usize>, Vec<usize>) {
    let last_read = |id| plan.ops.iter().rposition(|op| op.inputs.contains(&id));
    let (mut sizes, mut free) = (Vec::new(), Vec::new());
    let mut buffer_of = vec![usize::MAX; plan.tensors.len()];
    // Tensors that no op writes are imported, so they are there from the start.
    let written: Vec<_> = plan.ops.iter().flat_map(Op::outputs).collect();
    for id in (0..plan.tensors.len() as u32).map(TensorId).filter(|id| !written.contains(id)) {
        buffer_of[id.0 as usize] = sizes.len();
        sizes.push(size(id));
    }
    for (index, op) in plan.ops.iter().enumerate() {
        for id in op.outputs() {
            let wanted = size(id);
            let by_fit = |&&buffer: &&usize| match sizes[buffer] {
                size if size >= wanted => (0, size - wanted),
                size => (1, wanted - size),
            };
            let buffer = free.iter().min_by_key(by_fit).copied().unwrap_or(sizes.len());
            free.retain(|&other| other != buffer);
            match sizes.get_mut(buffer) {
                Some(size) => *size = wanted.max(*size),
                None => sizes.push(wanted),
            }
            buffer_of[id.0 as usize] = buffer;
        }
        // What is read here for the last time is free only now: an output never shares with its op's inputs.
        let mut ending: Vec<_> =
            op.inputs.iter().copied().filter(|&id| last_read(id) == Some(index)).collect();
        ending.extend(op.outputs().filter(|&id| last_read(id).is_none()));
        ending.sort();
        ending.dedup();
        free.extend(ending.into_iter().map(|id| buffer_of[id.0 as usize]));
    }
    (buffer_of, sizes)
}
