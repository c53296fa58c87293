//! Which adapters a path runs with, one behind the other.

use std::ops::Range;
use std::sync::Arc;

use wattle_shaders::{LayerMask, NO_INDEX};

use crate::adapter::Adapter;

/// An adapter choice, looked up as far as it can be before a slot is taken. It holds the version of the adapter that
/// the request began with.
#[derive(Clone)]
pub(crate) struct Choice {
    pub adapter: Option<Arc<Adapter>>,
    /// In which layers.
    pub layers: LayerMask,
    /// From which position on.
    pub from: usize,
    /// Whether gates decide too.
    pub gated: bool,
}

impl Choice {
    /// The choice with its adapter in this slot.
    pub fn in_slot(&self, slot: Option<u32>) -> ResolvedLora {
        let Self { layers, from, gated, .. } = *self;
        ResolvedLora { slot: slot.unwrap_or(NO_INDEX), layers, from, gated }
    }

    fn has_adapter_of(&self, other: &Self) -> bool {
        match (&self.adapter, &other.adapter) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            (one, other) => one.is_none() && other.is_none(),
        }
    }
}

/// An adapter choice with everything looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ResolvedLora {
    /// Adapter slot or [`NO_INDEX`].
    pub slot: u32,
    /// In which layers.
    pub layers: LayerMask,
    /// From which position on.
    pub from: usize,
    /// Whether gates decide too.
    pub gated: bool,
}

impl ResolvedLora {
    pub fn mask_at(&self, position: usize) -> LayerMask {
        if position >= self.from { self.layers } else { LayerMask::NONE }
    }
}

/// The adapter choices of a path. It holds one slot at most: that of the choice whose rows it runs. Whoever waits for a
/// slot holds none, so that paths cannot wait for each other.
pub(crate) struct Loras {
    /// With the position of the first row that each holds for, ascending from 0.
    choices: Vec<(usize, Choice)>,
    /// Which of them is in place, if one is.
    placed: Option<usize>,
    slot: Option<u32>,
}

impl Loras {
    /// One choice from the first row on, not in place yet.
    pub fn new(choice: Choice) -> Self {
        Self { choices: vec![(0, choice)], placed: None, slot: None }
    }

    /// Another choice from a position on, of which no row was run.
    pub fn switch(&mut self, position: usize, choice: Choice) {
        let at = self.choices.partition_point(|&(start, _)| start < position);
        self.choices.truncate(at);
        if self.placed.is_some_and(|placed| placed >= at) {
            // What was to begin here never will; its slot is given back in its time.
            self.placed = None;
        }
        self.choices.push((position, choice));
    }

    /// Whether the row at a position can run: the choice that holds for it is in place.
    pub fn is_placed(&self, position: usize) -> bool {
        self.placed == Some(self.at(position))
    }

    /// The choice that holds for a position.
    pub fn choice(&self, position: usize) -> &Choice {
        &self.choices[self.at(position)].1
    }

    /// The positions, from one on, that the same choice holds for.
    pub fn span(&self, position: usize) -> Range<usize> {
        let next = self.choices.get(self.at(position) + 1);
        position..next.map_or(usize::MAX, |&(start, _)| start)
    }

    /// The choice for a row that can run, in its slot.
    pub fn resolved(&self, position: usize) -> ResolvedLora {
        debug_assert!(self.is_placed(position), "the row at {position} has no slot yet");
        self.choice(position).in_slot(self.slot)
    }

    /// Puts the choice for a position in place where that needs no other slot than the path has.
    pub fn stay(&mut self, position: usize) {
        let at = self.at(position);
        let same = |&placed: &usize| self.choices[placed].1.has_adapter_of(&self.choices[at].1);
        if self.placed.as_ref().is_some_and(same) {
            self.placed = Some(at);
        }
    }

    /// Puts the choice for a position in place, in this slot if it has an adapter.
    pub fn place(&mut self, position: usize, slot: Option<u32>) {
        (self.placed, self.slot) = (Some(self.at(position)), slot);
    }

    /// No choice is in place any more: the slot that was held, to be given back.
    pub fn leave(&mut self) -> Option<u32> {
        self.placed = None;
        self.slot.take()
    }

    /// Whether it holds a slot.
    pub fn holds_slot(&self) -> bool {
        self.slot.is_some()
    }

    fn at(&self, position: usize) -> usize {
        self.choices.partition_point(|&(start, _)| start <= position).saturating_sub(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::{ActivationRule, Factors};

    fn choice(adapter: Option<&Arc<Adapter>>) -> Choice {
        Choice { adapter: adapter.cloned(), layers: LayerMask::ALL, from: 0, gated: false }
    }

    fn adapter() -> Arc<Adapter> {
        let factors = Arc::new(Factors::default());
        Arc::new(Adapter { name: String::new(), factors, rule: ActivationRule::Always })
    }

    #[test]
    fn a_path_holds_the_slot_of_the_rows_that_it_runs() {
        let [one, two] = [adapter(), adapter()];
        let mut loras = Loras::new(choice(Some(&one)));
        loras.place(0, Some(5));
        loras.switch(10, choice(Some(&two)));
        assert_eq!((loras.span(3), loras.span(10)), (3..10, 10..usize::MAX));
        assert!(loras.is_placed(9) && !loras.is_placed(10));
        assert_eq!(loras.resolved(9).slot, 5);
        loras.stay(10);
        assert!(!loras.is_placed(10), "another adapter is not in the slot");
        assert_eq!((loras.leave(), loras.leave()), (Some(5), None));
        assert!(!loras.is_placed(9));
        loras.place(10, Some(1));
        assert_eq!(loras.resolved(12).slot, 1);
        assert!(!loras.is_placed(9), "whoever runs the beginning again needs its slot again");
    }

    #[test]
    fn another_mask_for_the_same_adapter_needs_no_other_slot_and_the_last_switch_at_a_position_counts() {
        let one = adapter();
        let mut loras = Loras::new(choice(Some(&one)));
        loras.place(0, Some(2));
        loras.switch(4, choice(None));
        loras.switch(4, Choice { layers: LayerMask::NONE, ..choice(Some(&one)) });
        loras.stay(4);
        assert!(loras.is_placed(4));
        assert_eq!((loras.resolved(4).slot, loras.resolved(4).layers), (2, LayerMask::NONE));
        loras.switch(4, choice(None));
        assert!(!loras.is_placed(4) && loras.holds_slot());
        assert_eq!(loras.leave(), Some(2));
    }
}
