//! Adapters of an engine: loaded, replaced, forgotten, and the room that they need on the device.

use std::path::Path;
use std::sync::Arc;

use super::Engine;
use crate::adapter::{self, Adapter, Residency, ResidencyCounts};
use crate::backend::Packer;
use crate::error::{Error, Result};
use crate::model::{Model, Spec};
use crate::options::{AdapterRoom, EngineOptions};
use crate::plan::{LoraCapacity, Op, Plan};
use crate::request::AdapterId;
use crate::runtime::{Needs, Runtime, compile};
use crate::schedule::Host;

impl Engine {
    /// Loads an unmodified PEFT directory; the adapter is never merged into the base. `scale` multiplies its effect.
    pub fn load_adapter(&mut self, dir: impl AsRef<Path>, scale: f32) -> Result<AdapterId> {
        self.load_joined_adapter(&[(dir.as_ref(), scale)])
    }

    /// Loads several adapters, each with its scale, as one: their effects add up.
    pub fn load_joined_adapter(&mut self, adapters: &[(&Path, f32)]) -> Result<AdapterId> {
        self.add_adapter(read(adapters, &self.model.spec)?)
    }

    /// Adds an adapter that is in memory already.
    pub fn add_adapter(&mut self, adapter: Adapter) -> Result<AdapterId> {
        let ready = self.preparer().prepare(adapter)?;
        self.add_ready(ready)
    }

    /// What reads and lays out adapters for this engine, on any thread.
    pub(crate) fn preparer(&self) -> Preparer {
        Preparer(self.runtime.backend.packer())
    }

    pub(crate) fn add_ready(&mut self, Ready(adapter): Ready) -> Result<AdapterId> {
        let id = self.adapters.add(Arc::clone(&adapter));
        let result = self.bring(&adapter);
        if result.is_err() {
            self.adapters.replace(id, None);
        }
        result.map(|()| id)
    }

    /// Puts another adapter under an id. Requests that run go on with what they began with.
    pub fn replace_adapter(&mut self, id: AdapterId, adapter: Adapter) -> Result<()> {
        let ready = self.preparer().prepare(adapter)?;
        self.replace_ready(id, ready)
    }

    pub(crate) fn replace_ready(&mut self, id: AdapterId, Ready(adapter): Ready) -> Result<()> {
        let before = self.adapters.get(id).cloned().ok_or_else(not_loaded)?;
        self.adapters.replace(id, Some(Arc::clone(&adapter)));
        if let Err(error) = self.bring(&adapter) {
            self.adapters.replace(id, Some(before));
            return Err(error);
        }
        self.host().sweep();
        Ok(())
    }

    /// Forgets an adapter. Requests can no longer name it; those that run go on with it.
    pub fn remove_adapter(&mut self, id: AdapterId) -> Result<()> {
        if !self.adapters.replace(id, None) {
            return Err(not_loaded());
        }
        self.host().sweep();
        Ok(())
    }

    /// How many adapters are loaded, how many slots the device has for them, and how many of these are held by requests
    /// that run.
    pub fn adapter_slots(&self) -> (usize, [usize; 2]) {
        (self.adapters.len(), self.adapters.slots())
    }

    /// The plan with LoRA as it costs with this adapter: places where it has no factors cost nothing. `None` for one
    /// that is not loaded.
    pub fn priced_plan(&self, adapter: AdapterId) -> Option<Plan> {
        let adapter = self.adapters.get(adapter)?;
        Some(self.runtime.adapted_plan()?.priced_for(&adapter.factors))
    }

    /// How often adapters were put into slots and out of them.
    pub fn adapter_counts(&self) -> ResidencyCounts {
        self.adapters.counts
    }

    /// Makes room for an adapter, and puts it into a slot if one is free: what is wrong with it shows now.
    fn bring(&mut self, adapter: &Arc<Adapter>) -> Result<()> {
        self.make_room(0)?;
        let mut host = self.host();
        if let Some(slot) = host.take_slot(adapter)? {
            host.give_slot(slot);
        }
        Ok(())
    }

    /// Makes the runtime anew when so many positions or the adapters need more room than it has. Then all caches are
    /// empty.
    pub(super) fn make_room(&mut self, positions: usize) -> Result<()> {
        let exact = positions.max(self.options.context).clamp(1, self.model.spec.context);
        // Who needs more than there can ever be is not to disturb the others.
        self.runtime.could_have_room(positions, &self.options)?;
        if self.room_for == Some(self.adapters.changes()) && self.runtime.needs().context >= exact {
            return Ok(());
        }
        let needs = needs(&self.adapters, &self.model, &self.options, exact)?;
        let slots = needs.lora.slots;
        if !self.adapters.can_resize(slots) {
            let reason =
                format!("requests that run hold more slots than the {slots} for which there is room");
            return Err(Error::value("adapters", reason));
        }
        if !self.runtime.covers(&needs) {
            let mut factors = self.adapters.factors();
            factors.resize(slots, None);
            let before = self.runtime.needs().context;
            let new = |context: usize| {
                let needs = Needs { context: context.max(before), ..needs };
                Runtime::new(&self.model, &self.options, needs, &factors, Some(&self.runtime))
            };
            // A conversation that grows is not to make everything anew with each of its turns.
            let generous = if positions > before { exact.next_power_of_two() } else { exact };
            let generous = generous.min(self.model.spec.context);
            let runtime = match new(generous) {
                Err(_) if generous > exact => new(exact),
                made => made,
            };
            self.renew(runtime?);
        }
        self.adapters.resize(slots);
        self.room_for = Some(self.adapters.changes());
        Ok(())
    }

    /// The device may be lost: makes the runtime anew as it was.
    pub(super) fn revive(&mut self) -> Result<()> {
        let (needs, factors) = (self.runtime.needs(), self.adapters.factors());
        self.renew(Runtime::new(&self.model, &self.options, needs, &factors, None)?);
        Ok(())
    }

    /// Goes on with another runtime, which takes over the counts of pages and the list of steps.
    fn renew(&mut self, runtime: Runtime) {
        let before = std::mem::replace(&mut self.runtime, runtime);
        self.runtime.count_on_from(before.pages());
        self.runtime.steps = before.steps;
        self.rebuilds += 1;
    }
}

/// Does with an adapter what needs no engine: between two steps there is no time for it.
#[derive(Clone)]
pub(crate) struct Preparer(Option<Packer>);

/// An adapter of which that was done.
pub(crate) struct Ready(Arc<Adapter>);

impl Preparer {
    pub fn prepare(&self, adapter: Adapter) -> Result<Ready> {
        adapter.factors.check()?;
        // Whoever asks for it later finds it made.
        adapter.factors.digest();
        self.0.map_or(Ok(()), |packer| packer.pack(&adapter.factors))?;
        Ok(Ready(Arc::new(adapter)))
    }
}

/// Reads PEFT directories for a model of this shape, joined to one adapter.
pub(crate) fn read(adapters: &[(&Path, f32)], spec: &Spec) -> Result<Adapter> {
    let loaded: Vec<(Adapter, f32)> =
        adapters.iter().map(|&(dir, scale)| Ok((Adapter::load(dir, spec)?, scale))).collect::<Result<_>>()?;
    let parts: Vec<(&Adapter, f32)> = loaded.iter().map(|(adapter, scale)| (adapter, *scale)).collect();
    adapter::join(&parts)
}

pub(super) fn not_loaded() -> Error {
    Error::value("adapter", "no adapter of this id is loaded")
}

/// What the adapters and so many positions need of the device.
pub(super) fn needs(
    adapters: &Residency,
    model: &Model,
    options: &EngineOptions,
    context: usize,
) -> Result<Needs> {
    let AdapterRoom { slots, rank, bytes } = options.adapters;
    let rank = adapters.adapters().map(|adapter| adapter.rank()).fold(rank, usize::max);
    let outside = adapters.adapters().any(|adapter| adapter.has_factors_outside_layers());
    let mut slots = slots.unwrap_or(adapters.len().max(adapters.slots()[0]));
    if let (Some(budget), true) = (bytes, slots > 0 && rank > 0) {
        let each = slot_bytes(model, options, LoraCapacity { slots: 1, rank, outside }).max(1);
        slots = slots.min(usize::try_from(budget / each).unwrap_or(usize::MAX));
        if slots == 0 {
            let reason = format!("a slot of rank {rank} takes {each} bytes, and the budget is {budget}");
            return Err(Error::value("adapters", reason));
        }
    }
    if adapters.len() > 0 && slots == 0 {
        return Err(Error::value("adapters", "the engine was set up without room for any"));
    }
    Ok(Needs { context, lora: LoraCapacity { slots, rank, outside } })
}

/// Bytes of one slot: A and B of all sites.
fn slot_bytes(model: &Model, options: &EngineOptions, one: LoraCapacity) -> u64 {
    let (_, adapted) = compile(model, options, one);
    let mut sites: Vec<_> = adapted.ops.iter().flat_map(Op::sites).collect();
    sites.sort_by_key(|site| Arc::as_ptr(site));
    sites.dedup_by_key(|site| Arc::as_ptr(site));
    sites.iter().flat_map(|site| site.factor_bytes(adapted.factors)).map(|bytes| bytes as u64).sum()
}
