//! Which adapters are loaded, and which of them are in the device's slots. Pure bookkeeping: the caller moves the
//! factors.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use crate::adapter::{Adapter, Factors};
use crate::request::AdapterId;

/// Adapters by id, and slots that are held while requests run with what is in them.
///
/// A request holds the adapter itself, not its id: when the id gets another adapter, or is removed, the request keeps
/// the version that it began with, and the slot is emptied when its last holder ends.
#[derive(Default)]
pub(crate) struct Residency {
    loaded: BTreeMap<AdapterId, Arc<Adapter>>,
    /// All that somebody may still hold, also requests that wait.
    known: Vec<Weak<Adapter>>,
    slots: Vec<Slot>,
    next_id: u32,
    /// How often adapters came and went.
    changes: u64,
    clock: u64,
    pub counts: ResidencyCounts,
}

/// What happened so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResidencyCounts {
    /// Adapters put into slots.
    pub loads: u64,
    /// Adapters put out of their slot to make room for another.
    pub evictions: u64,
}

#[derive(Default)]
struct Slot {
    adapter: Option<Arc<Adapter>>,
    holders: usize,
    /// When it was last taken, by a clock that counts takings.
    taken: u64,
}

/// A slot that was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    pub slot: usize,
    /// The factors are not there yet.
    pub load: bool,
}

impl Residency {
    /// A new adapter, in no slot yet.
    pub fn add(&mut self, adapter: Arc<Adapter>) -> AdapterId {
        let id = AdapterId(self.next_id);
        self.next_id += 1;
        self.changes += 1;
        self.know(&adapter);
        self.loaded.insert(id, adapter);
        id
    }

    /// Another adapter (or none) under an id; `false` if there is no such id.
    pub fn replace(&mut self, id: AdapterId, adapter: Option<Arc<Adapter>>) -> bool {
        let known = self.loaded.contains_key(&id);
        self.changes += 1;
        match adapter {
            Some(adapter) if known => {
                self.know(&adapter);
                self.loaded.insert(id, adapter)
            }
            _ => self.loaded.remove(&id),
        };
        known
    }

    /// What the id stands for now.
    pub fn get(&self, id: AdapterId) -> Option<&Arc<Adapter>> {
        self.loaded.get(&id)
    }

    fn know(&mut self, adapter: &Arc<Adapter>) {
        self.known.retain(|known| known.strong_count() > 0);
        self.known.push(Arc::downgrade(adapter));
    }

    /// All adapters that have an id, or that requests still run with or will.
    pub fn adapters(&self) -> impl Iterator<Item = Arc<Adapter>> {
        self.known.iter().filter_map(Weak::upgrade)
    }

    /// Another number whenever adapters came or went.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// How many adapters have an id.
    pub fn len(&self) -> usize {
        self.loaded.len()
    }

    /// Slots, and how many of them are held.
    pub fn slots(&self) -> [usize; 2] {
        [self.slots.len(), self.slots.iter().filter(|slot| slot.holders > 0).count()]
    }

    /// Whether nobody holds a slot beyond the first `slots`.
    pub fn can_resize(&self, slots: usize) -> bool {
        self.slots.iter().skip(slots).all(|slot| slot.holders == 0)
    }

    /// From now on there are so many slots.
    pub fn resize(&mut self, slots: usize) {
        self.slots.resize_with(slots, Slot::default);
    }

    /// What is in the slots.
    pub fn factors(&self) -> Vec<Option<Arc<Factors>>> {
        let factors = |slot: &Slot| slot.adapter.as_ref().map(|adapter| Arc::clone(&adapter.factors));
        self.slots.iter().map(factors).collect()
    }

    /// The highest rank in each slot; 0 where it is empty.
    pub fn ranks(&self) -> Vec<u32> {
        let rank = |slot: &Slot| slot.adapter.as_ref().map_or(0, |adapter| adapter.rank() as u32);
        self.slots.iter().map(rank).collect()
    }

    /// Holds a slot for an adapter: its own, else an empty one, else the one that nobody holds and that was not taken
    /// for longest. `None` when all are held.
    pub fn take(&mut self, adapter: &Arc<Adapter>) -> Option<Taken> {
        let own = |slot: &Slot| slot.adapter.as_ref().is_some_and(|there| Arc::ptr_eq(there, adapter));
        let found = self.slots.iter().position(own);
        let load = found.is_none();
        let free = || self.slots.iter().enumerate().filter(|(_, slot)| slot.holders == 0);
        let slot = match found {
            Some(slot) => slot,
            None => free().min_by_key(|(_, slot)| (slot.adapter.is_some(), slot.taken))?.0,
        };
        self.clock += 1;
        let entry = &mut self.slots[slot];
        entry.holders += 1;
        entry.taken = self.clock;
        if load {
            self.counts.loads += 1;
            self.counts.evictions += u64::from(entry.adapter.replace(Arc::clone(adapter)).is_some());
        }
        Some(Taken { slot, load })
    }

    /// The factors could not be put into a slot that was just taken: it is empty, and nobody holds it.
    pub fn spoil(&mut self, slot: usize) {
        if let Some(slot) = self.slots.get_mut(slot) {
            *slot = Slot::default();
        }
    }

    /// Lets go of a slot.
    pub fn give(&mut self, slot: usize) {
        if let Some(slot) = self.slots.get_mut(slot) {
            slot.holders = slot.holders.saturating_sub(1);
        }
    }

    /// Forgets what is in slots that nobody holds and that no id stands for any more; returns these slots.
    pub fn sweep(&mut self) -> Vec<usize> {
        let loaded = &self.loaded;
        let stale = |slot: &Slot| {
            let named = |there: &Arc<Adapter>| loaded.values().any(|adapter| Arc::ptr_eq(adapter, there));
            slot.holders == 0 && slot.adapter.as_ref().is_some_and(|there| !named(there))
        };
        let stale: Vec<usize> = (0..self.slots.len()).filter(|&slot| stale(&self.slots[slot])).collect();
        stale.iter().for_each(|&slot| self.slots[slot].adapter = None);
        stale
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::ActivationRule;

    fn adapter(name: &str) -> Arc<Adapter> {
        let factors = Arc::new(Factors::default());
        Arc::new(Adapter { name: name.into(), factors, rule: ActivationRule::Always })
    }

    fn with_slots(slots: usize) -> Residency {
        let mut residency = Residency::default();
        residency.resize(slots);
        residency
    }

    #[test]
    fn an_adapter_in_its_slot_is_not_loaded_again_and_the_one_out_of_use_for_longest_makes_room() {
        let mut residency = with_slots(2);
        let [a, b, c] = ["a", "b", "c"].map(adapter);
        for all in [&a, &b, &c] {
            residency.add(Arc::clone(all));
        }
        assert_eq!(residency.take(&a), Some(Taken { slot: 0, load: true }));
        assert_eq!(residency.take(&b), Some(Taken { slot: 1, load: true }));
        assert_eq!(residency.take(&a), Some(Taken { slot: 0, load: false }));
        assert_eq!(residency.take(&c), None, "both are held");
        assert!(!residency.can_resize(1) && residency.can_resize(2));
        residency.give(0);
        assert_eq!(residency.take(&c), None, "a still has a holder");
        residency.give(0);
        residency.give(1);
        assert_eq!(residency.take(&c), Some(Taken { slot: 1, load: true }), "b was not taken for longer");
        assert_eq!(residency.counts, ResidencyCounts { loads: 3, evictions: 1 });
    }

    #[test]
    fn a_replaced_adapter_stays_in_its_slot_until_its_last_holder_lets_go() {
        let mut residency = with_slots(2);
        let (old, new) = (adapter("old"), adapter("new"));
        let id = residency.add(Arc::clone(&old));
        residency.take(&old).expect("a slot");
        assert!(residency.replace(id, Some(Arc::clone(&new))));
        assert_eq!(residency.sweep(), [] as [usize; 0]);
        assert_eq!(residency.take(&new), Some(Taken { slot: 1, load: true }), "not the old one's slot");
        residency.give(0);
        assert_eq!(residency.sweep(), [0]);
        assert!(residency.replace(id, None) && !residency.replace(id, Some(old)));
        residency.give(1);
        assert_eq!((residency.sweep(), residency.len()), (vec![1], 0));
        assert_eq!(residency.slots(), [2, 0]);
        assert!(residency.can_resize(0));
    }
}
