//! A backend with the plans of one model on it, rebuilt when a request needs more room.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use wattle_policy::{Prefix, RowShape, StepShape};
use wattle_shaders::{FROM_STATE, GATED, NO_INDEX, Row, Sampled};

use crate::adapter::Factors;
use crate::backend::{self, Backend, Capacity, Doors, Limits, PlanHandle, Step, Ticket};
use crate::cache::{Ledger, PAGE, PageStats, Room, pages_for};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::options::{BackendChoice, EngineOptions, PlanKind};
use crate::plan::{self, Extent, FuseOptions, KvShape, LoraCapacity, Plan, TensorId};

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

/// A backend, its capacity, and the plan without LoRA, with it, and with gates.
pub(crate) struct Runtime {
    pub backend: Box<dyn Backend>,
    pub capacity: Capacity,
    needs: Needs,
    base: Prepared,
    /// Only where some adapter is loaded.
    adapted: Option<Prepared>,
    /// The same with gates, where the engine has any.
    gated: Option<Prepared>,
    gates: bool,
    ledger: Ledger,
    /// Time in the backend's steps, the host waiting.
    pub device_time: Duration,
    /// What was run, if that is kept.
    pub steps: Option<Vec<RanStep>>,
}

/// A step that was run, as far as its cost depends on it.
#[derive(Clone, Debug, PartialEq)]
pub struct RanStep {
    /// Its rows, the ranks in the slots, and the pages that sequences share. Of a row whose token only the device knew, the token is one that no other
    /// row has.
    pub shape: StepShape,
    /// Whether the plan with LoRA ran.
    pub adapted: bool,
}

impl RanStep {
    fn new(step: &Step, ranks: Vec<u32>, prefixes: BTreeMap<u32, Prefix>, adapted: bool) -> Self {
        let mut rows: Vec<RowShape> = step.rows.iter().map(row_shape).collect();
        for sample in &step.samples {
            if let Some(row) = rows.get_mut(sample.row as usize) {
                row.sampled = true;
            }
        }
        Self { shape: StepShape { rows, ranks, prefixes }, adapted }
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
    /// Makes a backend and prepares the plans. `slots` are the factors of all adapter slots; what `before` has on its
    /// device, if that works, stays there.
    pub fn new(
        model: &Model,
        options: &EngineOptions,
        needs: Needs,
        slots: &[Option<Arc<Factors>>],
        before: Option<&Self>,
    ) -> Result<Self> {
        let (mut base_plan, mut adapted_plan) = compile(model, options, needs.lora);
        let capacity = capacity(&adapted_plan, options, needs.context)?;
        let another = before.and_then(|before| {
            let failed =
                |error: &Error| tracing::warn!(%error, "the device does not go on: it is opened anew");
            before.backend.another(capacity).inspect_err(failed).ok().flatten()
        });
        let mut backend = another.map_or_else(|| backend::create(options, capacity), Ok)?;
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
        let lora = needs.lora.slots > 0;
        let gated = options.gate.as_ref().filter(|_| lora).map(|gate| prepare(adapted_plan.with_gate(gate)));
        let gated = gated.transpose()?;
        let adapted = if lora { Some(prepare(adapted_plan)?) } else { None };
        let ledger = Ledger::new(
            &mut *backend,
            &capacity,
            options.share_prefixes,
            options.gate.as_ref().map(|gate| gate.digest()),
        )?;
        let gates = options.gate.is_some();
        let mut runtime = Self {
            backend,
            capacity,
            needs,
            base,
            adapted,
            gated,
            gates,
            ledger,
            device_time: Duration::ZERO,
            steps: options.keep_steps.then(Vec::new),
        };
        for (slot, factors) in slots.iter().enumerate() {
            runtime.set_slot(slot, factors.clone())?;
        }
        if options.autotune {
            let measured = runtime.backend.tune()?;
            tracing::info!(measured, "tuned");
        }
        Ok(runtime)
    }

    /// Puts factors into an adapter slot, or empties it.
    pub fn set_slot(&mut self, slot: usize, factors: Option<Arc<Factors>>) -> Result<()> {
        self.backend.set_slot(slot, factors.clone())?;
        self.ledger.set_slot(slot, factors.as_ref());
        Ok(())
    }

    /// Whether a sequence of so many positions fits, if nothing else is there.
    pub fn has_room(&self, positions: usize) -> Result<()> {
        fits(positions, self.capacity.pages)
    }

    /// Whether a sequence of so many positions fits a runtime that is made for it, if nothing else is there.
    pub fn could_have_room(&self, positions: usize, options: &EngineOptions) -> Result<()> {
        fits(positions, most_pages(&self.base.plan.kv, options))
    }

    /// Begins a sequence: see [`Ledger::start`].
    pub fn start(
        &mut self,
        sequence: u32,
        prompt: impl IntoIterator<Item = Row>,
        room: Room,
    ) -> Result<Option<usize>> {
        self.ledger.start(&mut *self.backend, sequence, prompt, room)
    }

    /// Gives a sequence what another has: see [`Ledger::fork`].
    pub fn fork(&mut self, from: u32, to: u32, positions: usize) -> Result<()> {
        self.ledger.fork(&mut *self.backend, from, to, positions)
    }

    /// Ends a sequence.
    pub fn release(&mut self, sequence: u32) -> Result<()> {
        self.ledger.release(&mut *self.backend, sequence)
    }

    /// What the pages of the KV cache are doing.
    pub fn pages(&self) -> PageStats {
        self.ledger.stats()
    }

    /// Adds what was done with the pages of an earlier runtime.
    pub fn count_on_from(&mut self, before: PageStats) {
        self.ledger.count_on_from(before);
    }

    /// Whether requests with these needs can run without rebuilding.
    pub fn covers(&self, needs: &Needs) -> bool {
        self.needs.covers(needs)
    }

    /// What there is room for.
    pub fn needs(&self) -> Needs {
        self.needs
    }

    /// The plan that a step runs: the base plan when the host knows that every mask is off; gates only where some row
    /// obeys them.
    fn choose(&self, step: &Step) -> &Prepared {
        let mut adapted =
            step.rows.iter().filter(|row| row.slot != NO_INDEX && row.lora != [0; 4]).peekable();
        match (&self.adapted, &self.gated) {
            (Some(_), Some(gated)) if adapted.clone().any(|row| row.flags & GATED != 0) => gated,
            (Some(plan), _) if adapted.peek().is_some() => plan,
            _ => &self.base,
        }
    }

    /// Whether requests can be gated.
    pub fn gates(&self) -> bool {
        self.gates
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
        let ledger = &mut self.ledger;
        let ticket = ledger.prepare(&mut *self.backend, step).and_then(|()| {
            if let Some(steps) = &mut self.steps {
                steps.push(RanStep::new(step, ranks(), ledger.prefixes(step), handle != self.base.handle));
            }
            let started = Instant::now();
            let ticket = self.backend.submit(handle, step);
            self.device_time += started.elapsed();
            ticket
        });
        match &ticket {
            Ok(ticket) => ledger.submitted(ticket, step),
            Err(_) => ledger.forget(),
        }
        ticket
    }

    /// Waits for a step.
    pub fn collect(&mut self, ticket: Ticket) -> Result<Vec<Sampled>> {
        let number = ticket.0;
        let started = Instant::now();
        let sampled = self.backend.collect(ticket);
        self.device_time += started.elapsed();
        match &sampled {
            Ok(sampled) => self.ledger.collected(number, sampled),
            Err(_) => self.ledger.forget(),
        }
        sampled
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
        let prepared = self.ledger.prepare(&mut *self.backend, step);
        let taps = prepared.and_then(|()| self.backend.run(handle, step, &doors));
        let mut taps: HashMap<_, _> = taps.inspect_err(|_| self.ledger.forget())?;
        taps.remove(&tensor)
            .ok_or_else(|| Error::device(self.backend.device(), format!("{name} was not returned")))
    }
}

/// The plans without and with LoRA that an engine with these options runs (with [`BackendChoice::Auto`], if there is a
/// GPU); they share their weights.
pub fn compile(model: &Model, options: &EngineOptions, lora: LoraCapacity) -> (Plan, Plan) {
    let some = LoraCapacity { slots: lora.slots.max(1), rank: lora.rank.max(1), ..lora };
    let plain = plan::build(&model.spec, &model.weights, some)
        .with_kv(options.kv)
        .with_factors(options.precision.factors());
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
    let early_select = fuse_options.early_select;
    let fuse_options = FuseOptions { lora_epilogue: false, early_select, ..FuseOptions::CPU };
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
    let most = most_pages(&plan.kv, options);
    let wanted = sequences.saturating_mul(pages_for(context));
    let pages = if options.kv_bytes.is_some() { most } else { most.min(wanted) };
    if pages == 0 {
        let reason =
            format!("less than a page of {PAGE} positions, which takes {} bytes", page_bytes(&plan.kv));
        return Err(Error::value("kv_bytes", reason));
    }
    Ok(Capacity { sequences, context, pages, rows, samples })
}

/// Pages that there can be at most.
fn most_pages(kv: &KvShape, options: &EngineOptions) -> usize {
    let count = |bytes: u64, each: u64| usize::try_from(bytes / each.max(1)).unwrap_or(usize::MAX);
    // A device reads a head's keys of all pages through one binding; with fewer pages, requests wait for each other.
    let bound = count(binding(options), head_bytes(kv)).max(1);
    options.kv_bytes.map_or(bound, |bytes| bound.min(count(bytes, page_bytes(kv))))
}

fn fits(positions: usize, pages: usize) -> Result<()> {
    if pages_for(positions) <= pages {
        return Ok(());
    }
    let reason = format!("{positions} positions, and the KV cache has {pages} pages of {PAGE}");
    Err(Error::value("request", reason))
}

/// Bytes of a page of keys and values, all layers of it.
pub(crate) fn page_bytes(kv: &KvShape) -> u64 {
    (2 * kv.layers * kv.kv_heads) as u64 * head_bytes(kv)
}

/// Bytes of a head's keys in a page: devices pad heads to whole vec4s.
fn head_bytes(kv: &KvShape) -> u64 {
    let head = KvShape { kv_heads: 1, head_dim: kv.head_dim.next_multiple_of(4), ..*kv };
    (PAGE * head.position_bytes()).max(1) as u64
}
