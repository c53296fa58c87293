//! Factors that are laid out before a slot takes them, on the threads that load adapters.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::slot::{PackedFactors, Slot, pack};
use crate::adapter::Factors;
use crate::backend::Pack;
use crate::error::Result;
use crate::plan::FactorType;

/// What is laid out and in no slot yet.
pub(super) struct Packs {
    kept: FactorType,
    ready: Mutex<Vec<Ready>>,
}

type Ready = (Weak<Factors>, PackedFactors);

/// Where these factors are.
fn find(ready: &[Ready], factors: &Arc<Factors>) -> Option<usize> {
    ready.iter().position(|(known, _)| known.ptr_eq(&Arc::downgrade(factors)))
}

impl Packs {
    /// For slots that keep factors so.
    pub fn new(kept: FactorType) -> Self {
        Self { kept, ready: Mutex::default() }
    }

    /// What was laid out of these factors, or is now.
    ///
    /// # Errors
    /// [`crate::Error::Value`] when there is no memory for it.
    pub fn take(&self, factors: &Arc<Factors>, kept: FactorType) -> Result<PackedFactors> {
        let mut ready = self.lock();
        match find(&ready, factors).filter(|_| kept == self.kept) {
            Some(at) => Ok(ready.swap_remove(at).1),
            None => {
                drop(ready);
                pack(factors, kept)
            }
        }
    }

    /// Keeps what a slot had of these factors for another slot.
    pub fn keep(&self, slot: &Slot) {
        if let Some(packed) = slot.packed_factors(self.kept) {
            self.put(&slot.factors, Arc::clone(packed));
        }
    }

    /// Once only: adapters may share their factors.
    fn put(&self, factors: &Arc<Factors>, packed: PackedFactors) {
        let mut ready = self.lock();
        if find(&ready, factors).is_none() {
            ready.push((Arc::downgrade(factors), packed));
        }
    }

    /// Without those whose factors are gone.
    fn lock(&self) -> MutexGuard<'_, Vec<Ready>> {
        // A list is whole even where a thread panicked while it held the lock.
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        ready.retain(|(factors, _)| factors.strong_count() > 0);
        ready
    }
}

impl Pack for Packs {
    fn pack(&self, factors: &Arc<Factors>) -> Result<()> {
        if find(&self.lock(), factors).is_none() {
            self.put(factors, pack(factors, self.kept)?);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::adapter::{Pair, Place, Target};

    #[test]
    fn factors_are_laid_out_once_and_forgotten_with_their_adapter() {
        let pair = Pair { rank: 1, cols: 2, rows: 2, a: vec![1.0, 2.0], b: vec![3.0, 4.0] };
        let place = Place { layer: 0, target: Target::Q };
        let factors = || Arc::new(Factors { pairs: BTreeMap::from([(place, pair.clone())]) });
        let packs = Packs::new(FactorType::F16);
        let [one, other] = [factors(), factors()];
        for factors in [&one, &one, &other] {
            packs.pack(factors).expect("memory");
        }
        assert_eq!(packs.lock().len(), 2);
        let ready = |packs: &Packs, factors: &Arc<Factors>| {
            let list = packs.lock();
            find(&list, factors).map(|at| Arc::clone(&list[at].1))
        };
        let laid = ready(&packs, &one).expect("laid out");
        assert!(Arc::ptr_eq(&laid, &packs.take(&one, FactorType::F16).expect("there")));
        assert!(ready(&packs, &one).is_none() && ready(&packs, &other).is_some());
        assert!(!Arc::ptr_eq(&laid, &packs.take(&one, FactorType::F16).expect("again")));
        drop(other);
        assert!(packs.lock().is_empty());
    }
}
