//! A case, and how it is run on a backend.

use std::ops::Range;
use std::sync::Arc;

use wattle_engine::adapter::Factors;
use wattle_engine::backend::cpu::{CpuBackend, CpuOptions, Mode};
use wattle_engine::backend::{Backend, Capacity, Doors, Limits, Step};
use wattle_engine::cache::pages_for;
use wattle_engine::plan::{Op, Plan, TensorId};
use wattle_engine::{Precision, Result, Sampled};

use crate::compare::{Checked, Failure, compare};

/// Makes a fresh backend for a case: with its capacity, and with guards on.
pub type Make<'a> = &'a dyn Fn(&Case) -> Result<Box<dyn Backend>>;

/// A small plan with everything it reads.
#[derive(Clone, Debug)]
pub struct Case {
    /// What is special about it; unique among the kernel's cases.
    pub name: String,
    /// Usually one op.
    pub plan: Arc<Plan>,
    /// What is done with it, in order.
    pub acts: Vec<Act>,
    /// Contents of the adapter slots.
    pub slots: Vec<Option<Arc<Factors>>>,
    /// Contents of the KV cache before the first act, from position 0 on: layer, sequence, K and V. The same
    /// positions are compared after the last act.
    pub kv: Vec<(usize, u32, [Vec<f32>; 2])>,
    /// Per sequence, its pages; `None` gives every sequence its own, in no order.
    pub tables: Option<Vec<Vec<u32>>>,
    /// What the backend must have room for.
    pub capacity: Capacity,
    /// The largest error, relative to the largest magnitude of each compared tensor.
    pub tolerance: f32,
}

/// One thing done with a plan.
#[derive(Clone, Debug)]
pub enum Act {
    /// Runs a range of ops with their border tensors imported; every tensor that the range writes is compared.
    Run {
        /// The ops.
        range: Range<usize>,
        /// The rows.
        step: Step,
        /// What the range reads and does not write.
        import: Vec<(TensorId, Vec<f32>)>,
    },
    /// Runs the whole plan; the drawn tokens are compared.
    Submit(Step),
}

/// What a backend answered.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Seen {
    /// A tensor or a part of the cache, by name.
    Floats(String, Vec<f32>),
    /// The samples of a step.
    Drawn(Vec<Sampled>),
}

impl Case {
    /// A case with one act: all ops of the plan are run on `step`.
    pub fn new(name: impl Into<String>, plan: Plan, step: Step, import: Vec<(TensorId, Vec<f32>)>) -> Self {
        let positions = step.rows.iter().map(|row| row.position as usize + 1);
        let context = positions.fold(16, usize::max);
        let (rows, samples) = (step.rows.len(), step.samples.len().max(1));
        let capacity = Capacity { sequences: 3, context, pages: 3 * pages_for(context) + 1, rows, samples };
        let act = Act::Run { range: 0..plan.ops.len(), step, import };
        let (slots, kv) = (Vec::new(), Vec::new());
        let (name, plan) = (name.into(), Arc::new(plan));
        Self { name, plan, acts: vec![act], slots, kv, tables: None, capacity, tolerance: 0.0 }
    }

    /// The same case with keys and values of so many positions, and a page more than is needed.
    pub fn with_context(mut self, context: usize) -> Self {
        self.capacity = Capacity { context, pages: 3 * pages_for(context) + 1, ..self.capacity };
        self
    }

    /// Pages of each sequence.
    pub(crate) fn tables(&self) -> Vec<Vec<u32>> {
        let (each, pages) = (pages_for(self.capacity.context), self.capacity.pages as u32);
        let scattered = |sequence| (0..each).map(|page| pages - 1 - (page * 3 + sequence) as u32).collect();
        self.tables.clone().unwrap_or_else(|| (0..3).map(scattered).collect())
    }

    /// The plain twins as a backend: what others are compared with.
    pub fn reference(&self) -> Result<Box<dyn Backend>> {
        let limits = Limits { guards: true, ..Limits::default() };
        let options = CpuOptions {
            mode: Mode::Plain,
            precision: Precision::Exact,
            threads: Some(1),
            limits,
            capacity: self.capacity,
        };
        Ok(Box::new(CpuBackend::new(options)?))
    }

    /// Runs the case on the plain twins and on the backend that `make` makes, and compares.
    ///
    /// # Errors
    /// A [`Failure`] when the backend answers with an error, or with anything else than the twins.
    pub fn check(&self, make: Make) -> Result<Checked, Failure> {
        let failed = |what: String| Failure { case: self.name.clone(), what };
        let reference = self.run(self.reference()).map_err(|error| failed(format!("reference: {error}")))?;
        let seen = self.run(make(self)).map_err(|error| failed(error.to_string()))?;
        compare(&reference, &seen, self.tolerance).map_err(failed)
    }

    /// All numbers that a backend answers to the case, poison as zeros.
    ///
    /// # Errors
    /// The backend's.
    pub fn values(&self, make: Make) -> Result<Vec<f32>> {
        let floats = |seen: Seen| match seen {
            Seen::Floats(_, values) => values,
            Seen::Drawn(_) => Vec::new(),
        };
        let values = self.run(make(self))?.into_iter().flat_map(floats);
        Ok(values.map(|value| if value.is_nan() { 0.0 } else { value }).collect())
    }

    /// Everything that a backend answers to the case.
    pub(crate) fn run(&self, backend: Result<Box<dyn Backend>>) -> Result<Vec<Seen>> {
        let mut backend = backend?;
        let plan = backend.prepare(&self.plan)?;
        for (slot, factors) in self.slots.iter().enumerate() {
            backend.set_slot(slot, factors.clone())?;
        }
        for (sequence, table) in self.tables().iter().enumerate() {
            backend.set_pages(sequence as u32, table)?;
        }
        for (layer, sequence, kv) in &self.kv {
            backend.import_kv(*layer, *sequence, kv)?;
        }
        let mut seen = Vec::new();
        for act in &self.acts {
            match act {
                Act::Run { range, step, import } => {
                    let taps = self.plan.ops[range.clone()].iter().flat_map(Op::outputs).collect();
                    let doors = Doors { range: range.clone(), import: import.clone(), taps };
                    let mut values = backend.run(plan, step, &doors)?;
                    for id in doors.taps {
                        let name = self.plan.tensor(id).name.clone();
                        seen.push(Seen::Floats(name, values.remove(&id).unwrap_or_default()));
                    }
                }
                Act::Submit(step) => {
                    let ticket = backend.submit(plan, step)?;
                    seen.push(Seen::Drawn(backend.collect(ticket)?));
                }
            }
        }
        let width = self.plan.kv.width();
        for (layer, sequence, before) in &self.kv {
            let [k, v] = backend.export_kv(*layer, *sequence, before[0].len() / width)?;
            seen.push(Seen::Floats(format!("keys of layer {layer}, sequence {sequence}"), k));
            seen.push(Seen::Floats(format!("values of layer {layer}, sequence {sequence}"), v));
        }
        backend.check_guards()?;
        Ok(seen)
    }
}
