//! Adapter slots of running paths.

use crate::error::{Error, Result};
use crate::schedule::host::Host;
use crate::schedule::loras::Choice;
use crate::schedule::scheduler::Scheduler;

/// Takes the slot that a choice needs, if it needs one; `None` while no slot is free.
pub(super) fn slot_for(choice: &Choice, host: &mut dyn Host) -> Result<Option<Option<u32>>> {
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
    /// order in which they began. Those that find none wait: nobody begins with an adapter before them.
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
        let (mut all, mut failed) = (true, Vec::new());
        for sequence in self.running.iter_mut().filter(|sequence| sequence.waits_for_room) {
            let slot = match slot_for(sequence.choice(), host) {
                Ok(Some(slot)) => slot,
                // Those that have slots and room go on, and end.
                Ok(None) => {
                    all = false;
                    continue;
                }
                Err(error @ Error::Device { .. }) => return Err(error),
                Err(error) => {
                    failed.push((sequence.job, error));
                    continue;
                }
            };
            sequence.place(slot);
            match host.begin(sequence.id, sequence.first_rows(), sequence.room())? {
                Some(positions) => sequence.found(positions),
                None => {
                    // Whoever waits for room holds no slot: somebody who has room may wait for it.
                    sequence.loras.leave().into_iter().for_each(|slot| host.give_slot(slot));
                    all = false;
                    break;
                }
            }
            sequence.waits_for_room = false;
        }
        failed.into_iter().for_each(|(job, error)| self.fail_job(job, error, host));
        Ok(all)
    }
}
