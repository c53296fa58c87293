//! A backend with the plans of one model on it, rebuilt when a request needs more room.

use std::collections::HashMap;
use std::sync::Arc;

use wattle_policy::{RowShape, StepShape};
use wattle_shaders::{FROM_STATE, NO_INDEX, Row, Sampled};

use crate::adapter::Factors;
use crate::backend::{self, Backend, Capacity, Doors, Limits, PlanHandle, Step, Ticket};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::options::{BackendChoice, EngineOptions, PlanKind};
use crate::plan::{self, Extent, FuseOptions, LoraCapacity, Plan, TensorId};

/// What the requests at hand need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Needs {
    /// Positions per sequence.
    pub context: usize,
    /// Adapter slots and rank.
    pub lora: LoraCapacity,
}

impl Needs {
    fn covers(&self, other: &Self) -> bool {
        self.context >= other.context
            && self.lora.slots >= other.lora.slots
            && self.lora.rank >= other.lora.rank
            && self.lora.outside >= other.lora.outside
    }
}

/// A prepared plan.
struct Prepared {
    plan: Arc<Plan>,
    handle: PlanHandle,
}

/// A backend, its capacity, and the plan with and without LoRA.
pub(crate) struct Runtime {
    pub backend: Box<dyn Backend>,
    pub capacity: Capacity,
    needs: Needs,
    base: Prepared,
    /// Only where some adapter is loaded.
    adapted: Option<Prepared>,
    /// What was run, if that is kept.
    pub steps: Option<Vec<RanStep>>,
}

/// A step that was run, as far as its cost depends on it.
#[derive(Clone, Debug, PartialEq)]
pub struct RanStep {
    /// Its rows, and the ranks in the slots. Of a row whose token only the device knew, the token is one that no other
    /// row has.
    pub shape: StepShape,
    /// Whether the plan with LoRA ran.
    pub adapted: bool,
}

impl RanStep {
    fn new(step: &Step, ranks: Vec<u32>, adapted: bool) -> Self {
        let mut rows: Vec<RowShape> = step.rows.iter().map(row_shape).collect();
        for sample in &step.samples {
            if let Some(row) = rows.get_mut(sample.row as usize) {
                row.sampled = true;
            }
        }
        Self { shape: StepShape { rows, ranks }, adapted }
    }
}

fn row_shape(row: &Row) -> RowShape {
    let known = row.flags & FROM_STATE == 0;
    let [a, b, c, d] = row.lora.map(u128::from);
    RowShape {
        token: if known { row.token } else { u32::MAX - row.sequence },
        sequence: row.sequence,
        position: row.position,
        sampled: false,
        slot: (row.slot != NO_INDEX).then_some(row.slot),
        lora: a | b << 32 | c << 64 | d << 96,
    }
}

impl Runtime {
    /// Makes a backend and prepares the plans. `slots` are the factors of all adapter slots.
    pub fn new(
        model: &Model,
        options: &EngineOptions,
        needs: Needs,
        slots: &[Option<Arc<Factors>>],
    ) -> Result<Self> {
        let (mut base_plan, mut adapted_plan) = compile(model, options, needs.lora);
        let capacity = capacity(&adapted_plan, options, needs.context)?;
        let mut backend = backend::create(options, capacity)?;
        if options.backend == BackendChoice::Auto && backend.kind() == "cpu" {
            let options = EngineOptions { backend: BackendChoice::Cpu, ..options.clone() };
            (base_plan, adapted_plan) = compile(model, &options, needs.lora);
        }
        backend.set_timing(options.timing);
        let mut prepare = |plan: Plan| -> Result<Prepared> {
            let plan = Arc::new(plan);
            Ok(Prepared { handle: backend.prepare(&plan)?, plan })
        };
        let base = prepare(base_plan)?;
        let adapted = if needs.lora.slots > 0 { Some(prepare(adapted_plan)?) } else { None };
        for (slot, factors) in slots.iter().enumerate() {
            backend.set_slot(slot, factors.clone())?;
        }
        let steps = options.keep_steps.then(Vec::new);
        Ok(Self { backend, capacity, needs, base, adapted, steps })
    }

    /// Whether requests with these needs can run without rebuilding.
    pub fn covers(&self, needs: &Needs) -> bool {
        self.needs.covers(needs)
    }

    /// What there is room for.
    pub fn needs(&self) -> Needs {
        self.needs
    }

    /// The plan that a step runs: the base plan when the host knows that every mask is off.
    fn choose(&self, step: &Step) -> &Prepared {
        let any_lora = step.rows.iter().any(|row| row.slot != NO_INDEX && row.lora != [0; 4]);
        match &self.adapted {
            Some(adapted) if any_lora => adapted,
            _ => &self.base,
        }
    }

    /// The plan without LoRA.
    pub fn base_plan(&self) -> &Arc<Plan> {
        &self.base.plan
    }

    /// The plan with LoRA, if some adapter is loaded.
    pub fn adapted_plan(&self) -> Option<&Arc<Plan>> {
        self.adapted.as_ref().map(|prepared| &prepared.plan)
    }

    /// Starts a step; `ranks` are those in the slots.
    pub fn submit(&mut self, step: &Step, ranks: impl FnOnce() -> Vec<u32>) -> Result<Ticket> {
        let handle = self.choose(step).handle;
        if let Some(steps) = &mut self.steps {
            steps.push(RanStep::new(step, ranks(), handle != self.base.handle));
        }
        self.backend.submit(handle, step)
    }

    /// Runs a part of the plan without LoRA.
    pub fn run_base(&mut self, step: &Step, doors: &Doors) -> Result<()> {
        self.backend.run(self.base.handle, step, doors).map(drop)
    }

    /// Waits for a step.
    pub fn collect(&mut self, ticket: Ticket) -> Result<Vec<Sampled>> {
        self.backend.collect(ticket)
    }

    /// Runs everything before sampling and returns the logits \[samples, vocab\].
    pub fn logits(&mut self, step: &Step) -> Result<Vec<f32>> {
        self.tap(step, "head")
    }

    /// Runs a step without sampling and returns one tensor by name.
    pub fn tap(&mut self, step: &Step, name: &str) -> Result<Vec<f32>> {
        let chosen = self.choose(step);
        let (plan, handle) = (&chosen.plan, chosen.handle);
        let tensor: TensorId =
            plan.find(name).ok_or_else(|| Error::value("tensor", format!("no {name} in the plan")))?;
        let end = plan.find_op("sample").unwrap_or(plan.ops.len());
        let doors = Doors { range: 0..end, import: Vec::new(), taps: vec![tensor] };
        let mut taps: HashMap<_, _> = self.backend.run(handle, step, &doors)?;
        taps.remove(&tensor)
            .ok_or_else(|| Error::device(self.backend.device(), format!("{name} was not returned")))
    }
}

/// The plans without and with LoRA that an engine with these options runs (with [`BackendChoice::Auto`], if there is a
/// GPU); they share their weights.
pub fn compile(model: &Model, options: &EngineOptions, lora: LoraCapacity) -> (Plan, Plan) {
    let some = LoraCapacity { slots: lora.slots.max(1), rank: lora.rank.max(1), ..lora };
    let plain = plan::build(&model.spec, &model.weights, some);
    if options.plan == PlanKind::Plain {
        return (plain.without_lora(), plain);
    }
    let fuse_options = match options.backend {
        BackendChoice::Auto if cfg!(not(feature = "gpu")) => FuseOptions::CPU,
        BackendChoice::Auto | BackendChoice::Gpu => FuseOptions::gpu(binding(options)),
        BackendChoice::Cpu => FuseOptions::CPU,
    };
    let fused = plan::fuse(&plain, fuse_options);
    if fused.max_b_pool_bytes() <= binding(options) {
        return (fused.without_lora(), fused);
    }
    // Both norm the same way: a row must not notice whether others have LoRA.
    let fuse_options = FuseOptions { lora_epilogue: false, ..FuseOptions::CPU };
    (plan::fuse(&plain.without_lora(), fuse_options), plan::fuse(&plain, fuse_options))
}

/// Every device allows bindings of 128 MiB (WebGPU's default limit).
fn binding(options: &EngineOptions) -> u64 {
    options.limits.binding.min(128 << 20)
}

fn capacity(plan: &Plan, options: &EngineOptions, context: usize) -> Result<Capacity> {
    let widest =
        |extent| plan.tensors.iter().filter(|t| t.extent == extent).map(|t| t.width).max().unwrap_or(1);
    let fitting = |wanted: usize, width: usize| {
        let limits = Limits { binding: binding(options), ..options.limits };
        match wanted.min(limits.max_rows(width)) {
            0 => Err(Error::value(
                "model",
                format!("one row of {width} values does not fit a binding of the device"),
            )),
            rows => Ok(rows),
        }
    };
    let rows = fitting(options.rows.max(1), widest(Extent::Rows))?;
    let samples = fitting(rows.min(options.sequences.max(32)), widest(Extent::Samples))?;
    let sequences = options.sequences.clamp(1, samples.min(rows));
    Ok(Capacity { sequences, context, rows, samples })
}
