//! [`Backend`] for the GPU.

use std::collections::HashMap;
use std::sync::Arc;

use wattle_shaders::Sampled;

use super::assign::assign;
use super::compile::Compiler;
use super::lora::to_halves;
use super::prepared::{Prepared, dispatches, fitting, tensor_bytes};
use super::{GpuBackend, Sequences, order};
use crate::adapter::Factors;
use crate::backend::validate::{self, StepLimits, below};
use crate::backend::{
    Backend, Capacity, Counters, Doors, Limits, Memory, Packer, PlanHandle, Step, Ticket, Timing, plan_check,
};
use crate::cache::pages_for;
use crate::error::{Error, Result};
use crate::plan::{FactorType, Op, Plan, TensorId};

impl GpuBackend {
    /// Makes the cache with the first plan; later plans must have its shape.
    fn ensure_sequences(&mut self, plan: &Plan) -> Result<()> {
        let Some(made) = &self.sequences else {
            self.sequences = Some(Sequences::new(&self.gpu, plan.kv, plan.vocab, self.capacity)?);
            return Ok(());
        };
        if (made.shape, made.vocab) != (plan.kv, plan.vocab) {
            let reason = format!(
                "{:?} and vocabulary {}, but the cache has {:?} and {}",
                plan.kv, plan.vocab, made.shape, made.vocab
            );
            return Err(Error::value("plan.kv", reason));
        }
        Ok(())
    }

    /// The pages that hold the first positions of a sequence.
    fn pages(&self, sequence: u32, positions: usize) -> Result<&[u32]> {
        below("positions", positions, self.capacity.context + 1)?;
        self.tables.check(sequence, positions)?;
        Ok(&self.tables.table(sequence)[..pages_for(positions)])
    }
}

impl Backend for GpuBackend {
    fn device(&self) -> &str {
        &self.gpu.info.name
    }

    fn kind(&self) -> &'static str {
        "gpu"
    }

    fn another(&self, capacity: Capacity) -> Result<Option<Box<dyn Backend>>> {
        let (weights, tuning) = (self.weights.shared(), self.tuning.clone());
        Ok(Some(Box::new(Self { weights, tuning, ..self.sibling(capacity)? })))
    }

    fn packer(&self) -> Option<Packer> {
        let kept = FactorType::F16;
        let lay_out = |factors: &Factors, kept| factors.laid_out(kept, to_halves).map(drop);
        self.plans.iter().any(|prepared| prepared.plan.factors == kept).then_some(Packer { kept, lay_out })
    }

    fn limits(&self) -> Limits {
        self.gpu.limits
    }

    fn prepare(&mut self, plan: &Arc<Plan>) -> Result<PlanHandle> {
        plan_check::plan(plan)?;
        for (&slot, factors) in &self.pools.slots {
            validate::factors(plan, slot, factors)?;
        }
        let capacity = fitting(&self.gpu, plan, self.capacity)?;
        self.ensure_sequences(plan)?;
        let angles = self.angles(plan)?;
        let mut assignment = assign(plan, |tensor| tensor_bytes(tensor, capacity));
        let tensors = assignment.sizes.len();
        assignment.sizes.extend(order::bytes(plan, capacity));
        let buffers = self.activations(&assignment.sizes)?;
        let ordered = buffers.get(tensors).unwrap_or(&self.nothing).clone();
        let activations: Vec<_> = assignment.buffer.iter().map(|&index| buffers[index].clone()).collect();
        let gpu = Arc::clone(&self.gpu);
        let mut launches = Vec::new();
        for op in &plan.ops {
            let compiler = Compiler {
                gpu: &gpu,
                plan,
                op,
                weights: &mut self.weights,
                pools: &mut self.pools,
                sequences: self.sequences.as_ref().ok_or_else(|| gpu.error("the KV cache is missing"))?,
                angles: angles.as_ref(),
                results: &self.results,
                nothing: &self.nothing,
                nowhere: &self.nowhere,
                ordered: &ordered,
                activations: &activations,
            };
            launches.push(compiler.launches()?);
        }
        let ops = dispatches(&gpu, &launches, capacity)?;
        let timing =
            |op: &Op| Timing { op: op.name.clone(), kernel: op.kind.kernel(), seconds: 0.0, launches: 0 };
        let timings = plan.ops.iter().map(timing).collect();
        let limits = StepLimits::of(plan, capacity);
        self.plans.push(Prepared { plan: Arc::clone(plan), limits, ops, activations, timings });
        Ok(PlanHandle(self.plans.len() - 1))
    }

    fn set_slot(&mut self, slot: usize, factors: Option<Arc<Factors>>) -> Result<()> {
        if let Some(factors) = &factors {
            self.plans.iter().try_for_each(|prepared| validate::factors(&prepared.plan, slot, factors))?;
        }
        self.pools.set(&self.gpu, slot, factors)
    }

    fn reset_sequence(&mut self, sequence: u32, seen: &[u32]) -> Result<()> {
        let sequences = self.sequences()?;
        below("sequence", sequence as usize, self.capacity.sequences)?;
        validate::seen(seen, sequences.vocab)?;
        sequences.reset(&self.gpu, sequence as usize, seen);
        self.gpu.check()
    }

    fn set_pages(&mut self, sequence: u32, table: &[u32]) -> Result<()> {
        self.tables_changed.set(true);
        self.tables.set(sequence, table)
    }

    fn copy_page(&mut self, from: u32, to: u32) -> Result<()> {
        self.tables.check_page(from)?;
        self.tables.check_page(to)?;
        let mut copies = self.copies.take().unwrap_or_else(|| self.encoder());
        let copied = self.sequences().map(|sequences| sequences.copy_page(&mut copies, from, to));
        self.copies = Some(copies);
        copied
    }

    fn submit(&mut self, plan: PlanHandle, step: &Step) -> Result<Ticket> {
        self.submit_step(plan, step)
    }

    fn collect(&mut self, ticket: Ticket) -> Result<Vec<Sampled>> {
        self.collect_step(&ticket)
    }

    fn run(&mut self, plan: PlanHandle, step: &Step, doors: &Doors) -> Result<HashMap<TensorId, Vec<f32>>> {
        self.run_range(plan, step, doors)
    }

    fn export_kv(&mut self, layer: usize, sequence: u32, positions: usize) -> Result<[Vec<f32>; 2]> {
        self.flush();
        let pages = self.pages(sequence, positions)?;
        self.sequences()?.export(&self.gpu, layer, pages, positions)
    }

    fn import_kv(&mut self, layer: usize, sequence: u32, kv: &[Vec<f32>; 2]) -> Result<()> {
        self.flush();
        let sequences = self.sequences()?;
        let width = sequences.shape.width();
        let [k, v] = [&kv[0], &kv[1]].map(Vec::len);
        if k != v || !k.is_multiple_of(width) {
            let reason = format!("{k} and {v} elements, expected the same multiple of {width}");
            return Err(Error::value("kv", reason));
        }
        sequences.import(&self.gpu, layer, self.pages(sequence, k / width)?, kv)
    }

    fn set_timing(&mut self, on: bool) {
        self.timing = on;
    }

    fn take_timings(&mut self) -> Vec<Timing> {
        let taken = |timing: &mut Timing| {
            let taken = timing.clone();
            (timing.seconds, timing.launches) = (0.0, 0);
            taken
        };
        let timings = self.plans.iter_mut().flat_map(|plan| &mut plan.timings);
        timings.filter(|timing| timing.launches > 0).map(taken).collect()
    }

    fn tune(&mut self) -> Result<usize> {
        self.tune_tiles()
    }

    fn counters(&self) -> Counters {
        self.counters
    }

    fn memory(&self) -> Memory {
        let activations: u64 = self.activations.iter().map(|(buffer, _)| buffer.size()).sum();
        let parts = self.sequences.as_ref().and_then(|sequences| sequences.split.as_ref());
        let parts = parts.map_or(0, |split| split.parts.size() + split.done.size());
        Memory {
            weights: self.weights.bytes,
            kv: self.sequences.as_ref().map_or(0, Sequences::kv_bytes),
            activations: activations + parts + self.step.size() + self.results.size(),
            lora: self.pools.bytes,
        }
    }

    fn check_guards(&mut self) -> Result<()> {
        self.guards()
    }
}
