//! The CPU backend: plain twins as the reference, and a multithreaded version.
//!
//! Weights are read where they lie; steps run when they are submitted.

mod awake;
mod backend;
mod fast;
mod kv;
mod layout;
mod memory;
mod op;
mod plain;
mod slot;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use wattle_kernels_cpu::Tally;
use wattle_kernels_cpu::fast::Precision;
use wattle_policy::OpCost;
use wattle_shaders::{GATED, LayerMask, Row, Sampled};

use super::{Capacity, Counters, Doors, Limits, PlanHandle, Step, Timing, validate};
use crate::cache::PAGE;
use crate::error::{Error, Result};
use crate::gate::LayerGate;
use crate::plan::{Extent, OpKind, Plan, RopeTable, TensorId};
use crate::threads;

use awake::awake;
use kv::KvCache;
use layout::Activations;
use op::Io;
use slot::Slot;

/// Which kernels run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// The plain twins: slow, f64 sums, the reference.
    Plain,
    /// f32, SIMD and threads.
    #[default]
    Fast,
}

/// How to make a [`CpuBackend`].
#[derive(Clone, Copy, Debug)]
pub struct CpuOptions {
    /// Which kernels run.
    pub mode: Mode,
    /// Of the fast kernels' activations; the plain twins are always exact.
    pub precision: Precision,
    /// Threads of an own pool; `None` uses rayon's global one. The plain twins use one thread.
    pub threads: Option<usize>,
    /// Only the guards count on a CPU.
    pub limits: Limits,
    /// What to make room for.
    pub capacity: Capacity,
}

/// Runs plans on the CPU.
pub struct CpuBackend {
    options: CpuOptions,
    name: String,
    pool: Option<rayon::ThreadPool>,
    plans: Vec<Prepared>,
    slots: BTreeMap<usize, Slot>,
    /// Made by the first prepared plan; all others must have its shape.
    kv: Option<KvCache>,
    results: HashMap<u64, Vec<Sampled>>,
    timing: bool,
    counters: Counters,
}

/// A plan and what its steps need.
struct Prepared {
    plan: Arc<Plan>,
    limits: validate::StepLimits,
    activations: Activations,
    /// Per op: see [`fast::left_to_next`].
    left: Vec<bool>,
    /// Cosines and sines of all positions, see [`RopeTable::values`]; shared by plans of the same angles.
    angles: Option<(RopeTable, Arc<Vec<f32>>)>,
    /// Per op.
    timings: Vec<Timing>,
}

/// How an op is run.
#[derive(Clone, Copy)]
struct Way {
    /// By its twin, over counting views.
    count: bool,
    /// With the t that the op before it would have made.
    makes_t: bool,
}

/// What a pass over some ops leaves.
#[derive(Default)]
struct Outcome {
    sampled: Vec<Sampled>,
    taps: HashMap<TensorId, Vec<f32>>,
    costs: Vec<OpCost>,
}

impl CpuBackend {
    /// A backend without plans; memory for the KV cache is taken with the first.
    ///
    /// # Errors
    /// [`Error::Device`] when the threads cannot be started.
    pub fn new(options: CpuOptions) -> Result<Self> {
        let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        let pool = options.threads.map(pool).transpose().map_err(|error| Error::device("cpu", error))?;
        if pool.is_none() {
            threads::ready()?;
        }
        let threads =
            pool.as_ref().map_or_else(rayon::current_num_threads, rayon::ThreadPool::current_num_threads);
        let name = match options.mode {
            Mode::Plain => "cpu (reference)".into(),
            Mode::Fast => format!("cpu ({threads} threads)"),
        };
        Ok(Self {
            options,
            name,
            pool,
            plans: Vec::new(),
            slots: BTreeMap::new(),
            kv: None,
            results: HashMap::new(),
            timing: false,
            counters: Counters::default(),
        })
    }

    /// Runs a range of ops with the plain twins over counting views: what each op of the range costs (bytes only),
    /// counted instead of computed. It also has the effects of the range.
    ///
    /// # Errors
    /// As for [`super::Backend::run`].
    pub fn count(&mut self, plan: PlanHandle, step: &Step, doors: &Doors) -> Result<Vec<OpCost>> {
        self.open(plan, step, doors)?;
        Ok(self.execute(plan, step, doors.range.clone(), &[], true)?.costs)
    }

    fn prepared(&mut self, plan: PlanHandle) -> Result<&mut Prepared> {
        let count = self.plans.len();
        self.plans.get_mut(plan.0).ok_or_else(|| {
            Error::value("plan", format!("handle {}, but {count} plans were prepared", plan.0))
        })
    }

    /// Checks a step and its doors.
    fn check(&mut self, plan: PlanHandle, step: &Step, doors: &Doors) -> Result<()> {
        let prepared = self.prepared(plan)?;
        prepared.limits.check(step)?;
        validate::doors(&prepared.plan, step, doors)?;
        self.cache()?.tables.check_step(step)
    }

    /// Checks a step and its doors, poisons if asked to, and imports.
    fn open(&mut self, plan: PlanHandle, step: &Step, doors: &Doors) -> Result<()> {
        self.check(plan, step, doors)?;
        let guards = self.options.limits.guards;
        let prepared = self.prepared(plan)?;
        if guards {
            prepared.activations.poison();
        }
        for (id, values) in &doors.import {
            prepared.activations.get_mut(*id)[..values.len()].copy_from_slice(values);
        }
        Ok(())
    }

    /// Runs ops of a checked step, on the backend's threads.
    fn execute(
        &mut self,
        handle: PlanHandle,
        step: &Step,
        range: Range<usize>,
        taps: &[TensorId],
        count: bool,
    ) -> Result<Outcome> {
        let pool = self.pool.take();
        let mut work = || {
            let mut outcome = Outcome::default();
            let mut step = Cow::Borrowed(step);
            // Taps and timings are of every op, counts those of the twins.
            let every = !taps.is_empty() || self.timing || count || self.options.mode != Mode::Fast;
            let leaves = !every && step.rows.len() <= fast::FEW;
            for index in range.clone() {
                let left = |index: usize| {
                    leaves
                        && range.contains(&index)
                        && range.contains(&(index + 1))
                        && self.plans[handle.0].left[index]
                };
                if left(index) {
                    continue;
                }
                let makes_t = index.checked_sub(1).is_some_and(left);
                self.run_op(handle, &step, index, Way { count, makes_t }, &mut outcome)?;
                let plan = &self.plans[handle.0];
                if let (OpKind::Gate(gate), Some(scores)) =
                    (&plan.plan.ops[index].kind, plan.plan.ops[index].output)
                {
                    close(gate, plan.activations.get(scores), &mut step.to_mut().rows);
                }
                for id in plan.plan.ops[index].outputs().filter(|id| taps.contains(id)) {
                    let tensor = plan.plan.tensor(id);
                    let len = validate::lines(tensor.extent, &step) * tensor.width;
                    outcome.taps.insert(id, plan.activations.get(id)[..len].to_vec());
                }
            }
            for (sampled, sample) in outcome.sampled.iter_mut().zip(&step.samples) {
                sampled.closed = step.rows[sample.row as usize].closed;
            }
            Ok(outcome)
        };
        let outcome = match &pool {
            Some(pool) => pool.install(|| awake(&mut work)),
            None => rayon::scope(|_| awake(&mut work)),
        };
        self.pool = pool;
        outcome
    }

    fn run_op(
        &mut self,
        handle: PlanHandle,
        step: &Step,
        index: usize,
        Way { count, makes_t }: Way,
        outcome: &mut Outcome,
    ) -> Result<()> {
        let prepared = &mut self.plans[handle.0];
        let plan = Arc::clone(&prepared.plan);
        let op = &plan.ops[index];
        let extent = match op.kind {
            OpKind::Sample => Extent::Samples,
            _ => op.output.map_or(Extent::Rows, |id| plan.tensor(id).extent),
        };
        let sampled_rows: Vec<_> = step.samples.iter().map(|sample| step.rows[sample.row as usize]).collect();
        let rows = if extent == Extent::Rows { &step.rows } else { &sampled_rows };
        let Some(kv) = self.kv.as_mut() else { return Err(Error::value("plan", "not prepared")) };
        let start = self.timing.then(Instant::now);
        let mut output = op.output.and_then(|id| prepared.activations.take(id));
        let mut carried = op.carry.as_ref().and_then(|carry| prepared.activations.take(carry.t));
        let widths = [op.output, op.carry.as_ref().map(|carry| carry.t)];
        let [width, t_width] = widths.map(|id| id.map_or(0, |id| plan.tensor(id).width));
        let input = |&id: &TensorId| {
            let tensor = plan.tensor(id);
            &prepared.activations.get(id)[..validate::lines(tensor.extent, step) * tensor.width]
        };
        let (tally, mut pages_read) = (Tally::default(), 0);
        let (shape, positions) = (kv.shape, kv.capacity.context);
        let (cache, layout, states) = kv.layer_mut(op::layer(&op.kind));
        let io = Io {
            rows,
            samples: &step.samples,
            inputs: op.inputs.iter().map(input).collect(),
            width: op.inputs.first().map_or(0, |&id| plan.tensor(id).width),
            makes_t,
            output: output.as_mut().map_or(&mut [], |buffer| &mut buffer.values_mut()[..rows.len() * width]),
            carried: carried
                .as_mut()
                .map_or(&mut [], |buffer| &mut buffer.values_mut()[..rows.len() * t_width]),
            cache,
            pages_read: &mut pages_read,
            states,
            slots: &self.slots,
            factors: plan.factors,
            angles: prepared.angles.as_ref().map(|(table, values)| (table.pairs(), &values[..])),
            shape,
            layout,
            positions,
            precision: self.options.precision,
        };
        // Only the twins can count; what a GPU fuses has no other kernels here.
        let result = match self.options.mode {
            Mode::Fast if !count && fast::has(op) => fast::run(op, io),
            _ => plain::run(op, io, count.then_some(&tally)),
        };
        for (id, buffer) in op.outputs().zip([output, carried].into_iter().flatten()) {
            prepared.activations.put(id, buffer);
        }
        outcome.sampled.extend(result?);
        if count {
            outcome.costs.push(plain::cost(&tally.counts()));
        }
        if let Some(start) = start {
            prepared.timings[index].seconds += start.elapsed().as_secs_f64();
            prepared.timings[index].launches += 1;
        }
        self.counters.launches += 1;
        self.counters.host_ops += 1;
        self.counters.kv_read_bytes += pages_read * (PAGE * 2 * shape.head_bytes()) as u64;
        Ok(())
    }
}

/// Clears the mask bits of gated rows whose scores do not open the gate.
fn close(gate: &LayerGate, scores: &[f32], rows: &mut [Row]) {
    for (row, &score) in rows.iter_mut().zip(scores) {
        let open = score > gate.threshold;
        if row.flags & GATED != 0 && row.lora_in(gate.layer) && !open {
            let mask = LayerMask::from_words(row.lora);
            row.lora = LayerMask(mask.0 & !(1 << gate.layer)).words();
            row.closed += 1;
        }
    }
}
