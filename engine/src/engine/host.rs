//! The engine's runtime and adapter slots, as the scheduler sees them.

use std::collections::BTreeSet;
use std::sync::Arc;

use wattle_shaders::{Row, Sampled};

use super::Engine;
use super::orders::choice;
use crate::adapter::{Adapter, Residency};
use crate::backend::{Capacity, Step, Ticket};
use crate::cache::PageStats;
use crate::error::Result;
use crate::request::Lora;
use crate::runtime::{Runtime, page_bytes};
use crate::schedule::{Choice, Host, Room};

/// [`Host`] for an engine.
pub(crate) struct EngineHost<'e> {
    runtime: &'e mut Runtime,
    adapters: &'e mut Residency,
    held: &'e mut BTreeSet<u32>,
}

impl Engine {
    pub(crate) fn host(&mut self) -> EngineHost<'_> {
        EngineHost { runtime: &mut self.runtime, adapters: &mut self.adapters, held: &mut self.held }
    }

    /// What the pages of the KV cache are doing; none is used when nothing runs.
    pub fn pages(&self) -> PageStats {
        self.runtime.pages()
    }

    /// Bytes of a page: what [`crate::EngineOptions::kv_bytes`] is divided by.
    pub fn page_bytes(&self) -> u64 {
        page_bytes(&self.plan().kv)
    }

    /// Sequences of the device that paths hold: none when nothing runs.
    pub fn sequences_held(&self) -> usize {
        self.held.len()
    }
}

impl EngineHost<'_> {
    /// Empties slots whose adapter nobody needs any more.
    pub(super) fn sweep(&mut self) {
        for slot in self.adapters.sweep() {
            if let Err(error) = self.runtime.set_slot(slot, None) {
                // Nobody names the slot before other factors are in it; a device that is lost says so in the next step.
                tracing::warn!(%error, slot, "an adapter's slot was not emptied");
            }
        }
    }
}

impl Host for EngineHost<'_> {
    fn capacity(&self) -> Capacity {
        self.runtime.capacity
    }

    fn depth(&self) -> usize {
        // The CPU backend runs steps as they are submitted.
        if self.runtime.backend.kind() == "gpu" { 2 } else { 1 }
    }

    fn resolve(&self, lora: &Lora) -> Result<Choice> {
        choice(lora, self.adapters, self.runtime.gates(), None)
    }

    fn take_slot(&mut self, adapter: &Arc<Adapter>) -> Result<Option<u32>> {
        let Some(taken) = self.adapters.take(adapter) else { return Ok(None) };
        if taken.load {
            let factors = Some(Arc::clone(&adapter.factors));
            if let Err(error) = self.runtime.set_slot(taken.slot, factors) {
                self.adapters.spoil(taken.slot);
                return Err(error);
            }
        }
        Ok(Some(taken.slot as u32))
    }

    fn give_slot(&mut self, slot: u32) {
        self.adapters.give(slot as usize);
        self.sweep();
    }

    fn begin(&mut self, sequence: u32, rows: Vec<Row>, room: Room) -> Result<Option<usize>> {
        self.runtime.has_room(room.positions)?;
        let found = self.runtime.start(sequence, rows, room)?;
        if found.is_some() {
            self.held.insert(sequence);
        }
        Ok(found)
    }

    fn copy(&mut self, from: u32, to: u32, positions: usize) -> Result<()> {
        self.runtime.fork(from, to, positions)
    }

    fn end(&mut self, sequence: u32) {
        self.held.remove(&sequence);
        if let Err(error) = self.runtime.release(sequence) {
            // Its pages are free; a device that cannot be told of it is lost, as the next step will say.
            tracing::debug!(%error, sequence, "ended");
        }
    }

    fn submit(&mut self, step: &Step) -> Result<Ticket> {
        self.runtime.submit(step, || self.adapters.ranks())
    }

    fn collect(&mut self, ticket: Ticket) -> Result<Vec<Sampled>> {
        self.runtime.collect(ticket)
    }
}
