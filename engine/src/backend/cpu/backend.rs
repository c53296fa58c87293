//! [`Backend`] for the CPU.

use std::collections::HashMap;
use std::sync::Arc;

use wattle_kernels_cpu::State;
use wattle_shaders::Sampled;

use super::fast;
use super::layout::Activations;
use super::slot::{Slot, pack};
use super::{CpuBackend, KvCache, Mode, Prepared};
use crate::adapter::Factors;
use crate::backend::{
    Backend, Counters, Doors, Limits, Memory, Packer, PlanHandle, Step, Ticket, Timing, plan_check, validate,
};
use crate::error::{Error, Result};
use crate::plan::{Op, Plan, RopeTable, TensorId};

impl CpuBackend {
    /// Tokens are below this.
    fn vocab(&self) -> usize {
        self.plans.iter().map(|plan| plan.plan.vocab).min().unwrap_or(0)
    }

    /// The table of angles, shared with earlier plans of the same angles.
    fn angles(&self, table: &RopeTable) -> (RopeTable, Arc<Vec<f32>>) {
        let known =
            self.plans.iter().filter_map(|plan| plan.angles.as_ref()).find(|(known, _)| known == table);
        let values = || Arc::new(table.values(self.options.capacity.context));
        (table.clone(), known.map_or_else(values, |(_, values)| Arc::clone(values)))
    }

    pub(super) fn cache(&mut self) -> Result<&mut KvCache> {
        self.kv
            .as_mut()
            .ok_or_else(|| Error::value("sequence", "no plan was prepared yet, so there is no KV cache"))
    }
}

impl Backend for CpuBackend {
    fn device(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> &'static str {
        "cpu"
    }

    fn packer(&self) -> Option<Packer> {
        // The plain twins take factors as they are.
        let lay_out = |factors: &Factors, kept| factors.laid_out(kept, pack).map(drop);
        let kept = self.options.precision.factors();
        (self.options.mode == Mode::Fast).then_some(Packer { kept, lay_out })
    }

    fn limits(&self) -> Limits {
        self.options.limits
    }

    fn prepare(&mut self, plan: &Arc<Plan>) -> Result<PlanHandle> {
        plan_check::plan(plan)?;
        for (&index, slot) in &self.slots {
            validate::factors(plan, index, &slot.factors)?;
        }
        let (capacity, guards) = (self.options.capacity, self.options.limits.guards);
        if let Some(kv) = self.kv.as_ref().filter(|kv| kv.shape != plan.kv) {
            return Err(Error::value("plan.kv", format!("{:?}, but the cache has {:?}", plan.kv, kv.shape)));
        }
        let activations = Activations::new(plan, capacity, guards)?;
        if self.kv.is_none() {
            self.kv = Some(KvCache::new(plan.kv, capacity, guards)?);
        }
        if self.options.mode == Mode::Fast {
            self.slots.values_mut().try_for_each(|slot| slot.pack(plan.factors))?;
        }
        let timing =
            |op: &Op| Timing { op: op.name.clone(), kernel: op.kind.kernel(), seconds: 0.0, launches: 0 };
        let prepared = Prepared {
            plan: Arc::clone(plan),
            limits: validate::StepLimits::of(plan, capacity),
            activations,
            left: fast::left_to_next(plan),
            angles: plan.rope.as_ref().map(|table| self.angles(table)),
            timings: plan.ops.iter().map(timing).collect(),
        };
        self.plans.push(prepared);
        Ok(PlanHandle(self.plans.len() - 1))
    }

    fn set_slot(&mut self, slot: usize, factors: Option<Arc<Factors>>) -> Result<()> {
        match factors {
            None => self.slots.remove(&slot),
            Some(factors) => {
                let mut new = Slot::new(factors);
                for prepared in &self.plans {
                    validate::factors(&prepared.plan, slot, &new.factors)?;
                    if self.options.mode == Mode::Fast {
                        new.pack(prepared.plan.factors)?;
                    }
                }
                self.slots.insert(slot, new)
            }
        };
        Ok(())
    }

    fn reset_sequence(&mut self, sequence: u32, seen: &[u32]) -> Result<()> {
        let vocab = self.vocab();
        let states = &mut self.cache()?.states;
        validate::below("sequence", sequence as usize, states.len())?;
        validate::seen(seen, vocab)?;
        let state = &mut states[sequence as usize];
        *state = State::default();
        seen.iter().for_each(|&token| state.mark(token));
        Ok(())
    }

    fn set_pages(&mut self, sequence: u32, table: &[u32]) -> Result<()> {
        self.cache()?.tables.set(sequence, table)
    }

    fn copy_page(&mut self, from: u32, to: u32) -> Result<()> {
        self.cache()?.copy_page(from, to)
    }

    fn submit(&mut self, plan: PlanHandle, step: &Step) -> Result<Ticket> {
        let prepared = self.prepared(plan)?;
        let range = 0..prepared.plan.ops.len();
        self.check(plan, step, &Doors { range: range.clone(), ..Doors::default() })?;
        if self.options.limits.lost_after.is_some_and(|steps| steps <= self.counters.steps) {
            return Err(Error::device(&self.name, "lost, as a test wanted"));
        }
        let sampled = self.execute(plan, step, range, &[], false)?.sampled;
        self.counters.steps += 1;
        self.counters.rows += step.rows.len() as u64;
        self.results.insert(self.counters.steps, sampled);
        Ok(Ticket(self.counters.steps))
    }

    fn collect(&mut self, ticket: Ticket) -> Result<Vec<Sampled>> {
        let unknown = || Error::value("ticket", format!("{} was never given out or is collected", ticket.0));
        let sampled = self.results.remove(&ticket.0).ok_or_else(unknown)?;
        self.counters.readback_bytes += size_of_val(&sampled[..]) as u64;
        Ok(sampled)
    }

    fn run(&mut self, plan: PlanHandle, step: &Step, doors: &Doors) -> Result<HashMap<TensorId, Vec<f32>>> {
        self.open(plan, step, doors)?;
        Ok(self.execute(plan, step, doors.range.clone(), &doors.taps, false)?.taps)
    }

    fn export_kv(&mut self, layer: usize, sequence: u32, positions: usize) -> Result<[Vec<f32>; 2]> {
        self.cache()?.export(layer, sequence, positions)
    }

    fn import_kv(&mut self, layer: usize, sequence: u32, kv: &[Vec<f32>; 2]) -> Result<()> {
        self.cache()?.import(layer, sequence, kv)
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

    fn counters(&self) -> Counters {
        self.counters
    }

    fn memory(&self) -> Memory {
        let mut tables: Vec<_> =
            self.plans.iter().filter_map(|plan| Some(&plan.angles.as_ref()?.1)).collect();
        tables.sort_by_key(|values| Arc::as_ptr(values));
        tables.dedup_by_key(|values| Arc::as_ptr(values));
        let mut slots: Vec<_> = self.slots.values().collect();
        slots.sort_by_key(|slot| Arc::as_ptr(&slot.factors));
        slots.dedup_by_key(|slot| Arc::as_ptr(&slot.factors));
        Memory {
            weights: tables.iter().map(|values| values.len() as u64 * 4).sum(),
            kv: self.kv.as_ref().map_or(0, KvCache::bytes),
            activations: self.plans.iter().map(|plan| plan.activations.bytes()).sum(),
            lora: slots.iter().map(|slot| slot.bytes() as u64).sum(),
        }
    }

    fn check_guards(&mut self) -> Result<()> {
        let overwritten =
            |what: String| Err(Error::device(&self.name, format!("guard words overwritten behind {what}")));
        for prepared in &self.plans {
            if let Some(tensors) = prepared.activations.broken() {
                let names: Vec<_> = tensors.iter().map(|&t| prepared.plan.tensors[t].name.as_str()).collect();
                return overwritten(format!("the buffer of {}", names.join(", ")));
            }
        }
        match self.kv.as_ref().map(KvCache::intact) {
            Some([false, _]) => overwritten("the keys of the KV cache".into()),
            Some([_, false]) => overwritten("the values of the KV cache".into()),
            _ => Ok(()),
        }
    }
}
