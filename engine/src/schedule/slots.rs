//! Adapter slots of running paths.

use crate::error::{Error, Result};
use crate::schedule::host::Host;
use crate::schedule::loras::Choice;
use crate::schedule::scheduler::Scheduler;
use crate::schedule::sequence::Sequence;

/// Takes the slot that a choice needs, if it needs one; `None` while no slot is free.
pub(crate) fn slot_for(choice: &Choice, host: &mut dyn Host) -> Result<Option<Option<u32>>> {
    match &choice.adapter {
        Some(adapter) => Ok(host.take_slot(adapter)?.map(Some)),
        None => Ok(Some(None)),
    }
}

/// What a request gets that cannot have what it needs even when nothing else runs.
pub(super) fn never(what: &str) -> Error {
    Error::value("request", format!("there is no {what} for it even when nothing else runs"))
}

impl Scheduler {
    /// Paths that come to rows of another adapter let go of their slots; then each takes the one that it needs, in the
    /// order in which they began. Those that find none wait, and whoever comes behind them waits for a slot too, even
    /// for one that holds what it needs: else it might never become free.
    pub(super) fn change_slots(&mut self, host: &mut dyn Host) -> Result<()> {
        for sequence in &mut self.running {
            if let Some(slot) = sequence.leave_other_slot() {
                host.give_slot(slot);
                self.released += 1;
            }
        }
        let mut held = self.running.iter().any(|sequence| sequence.loras.holds_slot());
        let (mut waits, mut failed) = (false, Vec::new());
        for sequence in self.running.iter_mut().filter(|sequence| sequence.waits_for_slot()) {
            if waits && sequence.choice().adapter.is_some() {
                continue;
            }
            match slot_for(sequence.choice(), host) {
                Ok(Some(slot)) => {
                    sequence.place(slot);
                    held |= slot.is_some();
                }
                Ok(None) if held => waits = true,
                Ok(None) => failed.push((sequence.job, never("adapter slot"))),
                Err(error @ Error::Device { .. }) => return Err(error),
                Err(error) => failed.push((sequence.job, error)),
            }
        }
        failed.into_iter().for_each(|(job, error)| self.fail_job(job, error, host));
        let waited = std::mem::replace(&mut self.slot_wanted, waits);
        // Who was kept from beginning may begin now.
        self.released += u64::from(waited && !waits);
        Ok(())
    }

    /// Gives paths their slots and their room on a device that was made anew: what they shared they have to run first,
    /// so some may have to wait. Whether none does.
    pub(super) fn begin_again(&mut self, host: &mut dyn Host) -> Result<bool> {
        if self.room_wanted == Some(self.released) {
            // Nothing was released since there was too little.
            return Ok(false);
        }
        let (mut all, mut failed) = (true, Vec::new());
        for sequence in self.running.iter_mut().filter(|sequence| sequence.waits_for_room) {
            match seat(sequence, host) {
                Ok(Seat::Taken(_)) => {}
                // Those that have slots and room go on, and end.
                Ok(Seat::NoSlot) => all = false,
                Ok(Seat::NoRoom) => {
                    all = false;
                    break;
                }
                Err(error @ Error::Device { .. }) => return Err(error),
                Err(error) => failed.push((sequence.job, error)),
            }
        }
        self.room_wanted = (!all).then_some(self.released);
        failed.into_iter().for_each(|(job, error)| self.fail_job(job, error, host));
        Ok(all)
    }
}

/// What became of a path that was to get its slot and its room.
pub(super) enum Seat {
    /// It has both, and so many of its positions are in the cache already.
    Taken(usize),
    NoSlot,
    NoRoom,
}

/// Gives a path its slot and its room, both or neither: somebody who has room may wait for the slot.
pub(super) fn seat(sequence: &mut Sequence, host: &mut dyn Host) -> Result<Seat> {
    let Some(slot) = slot_for(sequence.choice(), host)? else { return Ok(Seat::NoSlot) };
    sequence.place(slot);
    let rows = if sequence.waits_for_copy { Vec::new() } else { sequence.first_rows() };
    match host.begin(sequence.id, rows, sequence.room()) {
        Ok(Some(positions)) => {
            sequence.found(positions);
            sequence.waits_for_room = false;
            Ok(Seat::Taken(positions))
        }
        refused => {
            sequence.loras.leave().into_iter().for_each(|slot| host.give_slot(slot));
            refused.map(|_| Seat::NoRoom)
        }
    }
}
