//! What runs plans. Everything above speaks to a device through [`Backend`] alone.

pub mod cpu;
#[cfg(feature = "gpu")]
pub mod gpu;
mod limits;
mod pages;
mod plan_check;
mod select;
pub(crate) mod validate;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use bytemuck::Zeroable;
use wattle_policy::StepShape;
use wattle_shaders::{GENERATED, LayerMask, NO_INDEX, Row, Sample, Sampled};

pub use limits::Limits;
pub use select::create;

use crate::adapter::Factors;
use crate::error::Result;
use crate::plan::{FactorType, Plan, TensorId};

/// The rows of a step and which of them are sampled.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Step {
    /// One per token. Rows of one sequence have ascending positions; those of class generated come before prompts'.
    pub rows: Vec<Row>,
    /// At most one per row, with ascending `row`.
    pub samples: Vec<Sample>,
}

impl Step {
    /// A step of this shape, its rows of class prompt and its samples greedy; for measuring.
    pub fn of(shape: &StepShape) -> Self {
        let mut step = Self::default();
        for (index, row) in (0..).zip(&shape.rows) {
            let (slot, lora) = (row.slot.unwrap_or(NO_INDEX), LayerMask(row.lora).words());
            step.rows.push(Row { slot, lora, ..Row::prompt(row.token, row.position, row.sequence) });
            if row.sampled {
                let sample = Sample { row: index, sequence: row.sequence, ..Sample::zeroed() };
                step.samples.push(Sample { top_p: 1.0, penalty: 1.0, ..sample });
            }
        }
        step
    }

    /// How many rows are of class generated.
    pub fn generated(&self) -> usize {
        self.rows.partition_point(|row| row.flags & GENERATED != 0)
    }
}

/// What a backend reserves for a model. Sizes are checked by [`Backend::prepare`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Sequences that have a KV cache and state at the same time.
    pub sequences: usize,
    /// Positions per sequence.
    pub context: usize,
    /// Pages of KV cache, of [`crate::cache::PAGE`] positions, for all sequences together.
    pub pages: usize,
    /// The most rows of a step.
    pub rows: usize,
    /// The most samples of a step.
    pub samples: usize,
}

/// Names a plan that a backend has prepared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PlanHandle(pub usize);

/// Names a step that was submitted and not yet collected.
#[derive(Debug, PartialEq, Eq)]
pub struct Ticket(pub u64);

/// Doors into a plan: run some ops, with tensors given and tensors taken.
#[derive(Clone, Debug, Default)]
pub struct Doors {
    /// The ops to run.
    pub range: Range<usize>,
    /// Contents of tensors that the range reads and does not write: \[extent rows, width\], row-major.
    pub import: Vec<(TensorId, Vec<f32>)>,
    /// Tensors to copy out right after the op of the range that writes them.
    pub taps: Vec<TensorId>,
}

/// Time and launches of one op since the last call of [`Backend::take_timings`].
#[derive(Clone, Debug, PartialEq)]
pub struct Timing {
    /// The op's name.
    pub op: String,
    /// Its kernel's name.
    pub kernel: &'static str,
    /// Seconds, summed over steps.
    pub seconds: f64,
    /// Launches (or, on the CPU, calls).
    pub launches: u64,
}

/// Bytes that a backend holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Base weights, on the device or owned by the host (mapped files do not count).
    pub weights: u64,
    /// KV cache.
    pub kv: u64,
    /// Activations, logits, step data.
    pub activations: u64,
    /// LoRA pools.
    pub lora: u64,
}

/// What a backend did since it was made; tests assert the promises of the token path with these.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Steps submitted.
    pub steps: u64,
    /// Submissions to the device: one for each step, with the copies of pages before it (GPU).
    pub submits: u64,
    /// Compute passes of steps (GPU).
    pub passes: u64,
    /// Kernel launches of steps.
    pub launches: u64,
    /// Rows of steps.
    pub rows: u64,
    /// Bytes of keys and values that steps read for attention, in whole pages (CPU) or chunks of 128 positions (GPU):
    /// once for all rows that are computed while they are near. A GPU's leave windows, by which layers read fewer, and
    /// heads of a key head beyond the first eight out of account; plain twins count nothing.
    pub kv_read_bytes: u64,
    /// Steps that were submitted while another one was not yet collected: the host wrote them ahead.
    pub ahead: u64,
    /// Bytes read back by [`Backend::collect`].
    pub readback_bytes: u64,
    /// Ops of plans that ran on the host (0 on a GPU).
    pub host_ops: u64,
}

/// Lays factors out as a backend wants them, on any thread, so that [`Backend::set_slot`] finds that done and steps go on
/// meanwhile.
#[derive(Clone, Copy)]
pub struct Packer {
    kept: FactorType,
    lay_out: fn(&Factors, FactorType) -> Result<()>,
}

impl Packer {
    /// Lays these factors out; they keep the result.
    ///
    /// # Errors
    /// [`crate::Error::Value`] when there is no memory for it.
    pub fn pack(&self, factors: &Factors) -> Result<()> {
        (self.lay_out)(factors, self.kept)
    }
}

/// A device that runs plans. One backend holds one model's KV cache and sequence states.
///
/// Device-owned state per sequence: the last sampled token, and which tokens were seen (rows that are run, and
/// sampled tokens), for the repetition penalty. [`wattle_shaders::FROM_STATE`] rows take their token from there.
pub trait Backend: Send {
    /// The device's name, as reports print it.
    fn device(&self) -> &str;

    /// `"cpu"` or `"gpu"`.
    fn kind(&self) -> &'static str;

    /// The limits that plans and steps have to fit.
    fn limits(&self) -> Limits;

    /// Makes everything that steps of this plan need: weights, buffers, pipelines, bind groups. All plans of a
    /// backend share its capacity, KV cache and state, and weights that are the same [`crate::model::Matrix`].
    fn prepare(&mut self, plan: &Arc<Plan>) -> Result<PlanHandle>;

    /// Puts factors into an adapter slot of all prepared plans (and of those prepared later), or empties it.
    fn set_slot(&mut self, slot: usize, factors: Option<Arc<Factors>>) -> Result<()>;

    /// What lays factors out for backends of this kind and precision; `None` where slots take them as they are.
    fn packer(&self) -> Option<Packer> {
        None
    }

    /// Begins a sequence: its state is cleared, and these tokens count as seen (those whose KV it has without having
    /// run them). Its cache needs no clearing, rows attend only to what was written.
    fn reset_sequence(&mut self, sequence: u32, seen: &[u32]) -> Result<()>;

    /// Says which pages a sequence has, in the order of its positions; steps submitted from now on use them. Until
    /// then sequence s has the s-th equal part of the pages. Sequences may share pages; one that two rows of a step
    /// write to has either's values.
    fn set_pages(&mut self, sequence: u32, table: &[u32]) -> Result<()>;

    /// Copies a page's keys and values, after the steps that were submitted and before those that will be.
    fn copy_page(&mut self, from: u32, to: u32) -> Result<()>;

    /// Starts a step. Steps run in the order in which they are submitted.
    fn submit(&mut self, plan: PlanHandle, step: &Step) -> Result<Ticket>;

    /// Waits for a step: one entry per sample, in order.
    fn collect(&mut self, ticket: Ticket) -> Result<Vec<Sampled>>;

    /// Runs a range of ops on a step, with its borders open; waits for it. Returns the taps.
    fn run(&mut self, plan: PlanHandle, step: &Step, doors: &Doors) -> Result<HashMap<TensorId, Vec<f32>>>;

    /// The K and V of one layer and sequence, as f32, for positions `0..positions`: two of \[positions, kv_heads × head_dim\].
    fn export_kv(&mut self, layer: usize, sequence: u32, positions: usize) -> Result<[Vec<f32>; 2]>;

    /// Writes K and V as [`Self::export_kv`] returned them, from position 0 on.
    fn import_kv(&mut self, layer: usize, sequence: u32, kv: &[Vec<f32>; 2]) -> Result<()>;

    /// Turns timing of ops on or off (off at first; a GPU needs timestamp queries, without them nothing is timed).
    fn set_timing(&mut self, on: bool);

    /// What was timed since the last call: steps, and runs without taps.
    fn take_timings(&mut self) -> Vec<Timing>;

    /// Measures what suits this device best among kernels that compute the same, for the prepared plans, unless it is
    /// known already, and takes it from now on; how many choices were measured.
    fn tune(&mut self) -> Result<usize> {
        Ok(0)
    }

    /// Another backend, of this capacity, that has this one's device and weights: none is copied a second time. `None`
    /// where there is nothing to share.
    fn another(&self, _capacity: Capacity) -> Result<Option<Box<dyn Backend>>> {
        Ok(None)
    }

    /// What was done so far.
    fn counters(&self) -> Counters;

    /// Bytes held now.
    fn memory(&self) -> Memory;

    /// With [`Limits::guards`]: an error that names the first buffer whose guard words were overwritten.
    fn check_guards(&mut self) -> Result<()>;
}
