//! What the scheduler needs of the world below it.

use std::sync::Arc;

use wattle_shaders::{Row, Sampled};

use crate::adapter::Adapter;
use crate::backend::{Capacity, Step, Ticket};
pub(crate) use crate::cache::Room;
use crate::error::Result;
use crate::request::Lora;
use crate::schedule::loras::Choice;

/// A device with its adapter slots and its memory, as the scheduler sees it. The engine implements it for its runtime;
/// tests implement it without a model.
pub(crate) trait Host {
    /// What fits.
    fn capacity(&self) -> Capacity;

    /// Steps that may be under way at the same time.
    fn depth(&self) -> usize;

    /// Looks up what a caller switched to.
    fn resolve(&self, lora: &Lora) -> Result<Choice>;

    /// A slot with this adapter's factors in it, held until [`Self::give_slot`] was called as often; `None` while all
    /// slots are held for other adapters. An error that is not the device's is the request's alone.
    fn take_slot(&mut self, adapter: &Arc<Adapter>) -> Result<Option<u32>>;

    /// Lets go of a slot. A device that cannot be told of it is lost, as the next step will say.
    fn give_slot(&mut self, slot: u32);

    /// Room for a path on a free sequence, whose state is cleared; `rows` are those that it will run first. Returns how
    /// many of them it has already, and need not run: fewer than there are. `None` while there is no room (then the path
    /// waits, and everything that ends makes room). An error is the request's alone: no room ever.
    fn begin(&mut self, sequence: u32, rows: Vec<Row>, room: Room) -> Result<Option<usize>>;

    /// Gives a path that has begun and run nothing what another has, which has drawn nothing: the first `positions`.
    fn copy(&mut self, from: u32, to: u32, positions: usize) -> Result<()>;

    /// The path on a sequence has ended: its room is free. Steps under way may still name the sequence.
    fn end(&mut self, sequence: u32);

    /// Starts a step.
    fn submit(&mut self, step: &Step) -> Result<Ticket>;

    /// Waits for a step: one entry per sample.
    fn collect(&mut self, ticket: Ticket) -> Result<Vec<Sampled>>;
}
