//! Factors laid out as a backend reads them, on the threads that load adapters.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::Pack;
use crate::adapter::Factors;
use crate::error::Result;
use crate::plan::FactorType;

/// What adapters were laid out as, for as long as their factors live: also while no slot has them.
pub(super) struct Packs<P> {
    kept: FactorType,
    lay_out: fn(&Factors, FactorType) -> Result<P>,
    ready: Mutex<Vec<(Weak<Factors>, P)>>,
}

/// What these factors were laid out as.
fn find<P: Clone>(ready: &[(Weak<Factors>, P)], factors: &Arc<Factors>) -> Option<P> {
    let same = |known: &Weak<Factors>| known.as_ptr() == Arc::as_ptr(factors);
    ready.iter().find(|(known, _)| same(known)).map(|(_, pack)| pack.clone())
}

impl<P: Clone> Packs<P> {
    /// For slots that keep factors so.
    pub fn new(kept: FactorType, lay_out: fn(&Factors, FactorType) -> Result<P>) -> Self {
        Self { kept, lay_out, ready: Mutex::default() }
    }

    /// What these factors were laid out as, or are now. `P` is shared by all who ask.
    ///
    /// # Errors
    /// [`crate::Error::Value`] when there is no memory for it.
    pub fn of(&self, factors: &Arc<Factors>, kept: FactorType) -> Result<P> {
        if kept != self.kept {
            return (self.lay_out)(factors, kept);
        }
        let known = find(&self.lock(), factors);
        if let Some(known) = known {
            return Ok(known);
        }
        // Not under the lock: it takes milliseconds, and the engine may ask for another adapter meanwhile.
        let new = (self.lay_out)(factors, kept)?;
        let mut ready = self.lock();
        Ok(find(&ready, factors).unwrap_or_else(|| {
            ready.push((Arc::downgrade(factors), new.clone()));
            new
        }))
    }

    /// Frees what was laid out of factors that are gone.
    pub fn sweep(&self) {
        drop(self.lock());
    }

    /// Without those whose factors are gone.
    fn lock(&self) -> MutexGuard<'_, Vec<(Weak<Factors>, P)>> {
        // A list is whole even where a thread panicked while it held the lock.
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        ready.retain(|(factors, _)| factors.strong_count() > 0);
        ready
    }
}

impl<P: Clone + Send> Pack for Packs<P> {
    fn pack(&self, factors: &Arc<Factors>) -> Result<()> {
        self.of(factors, self.kept).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    static TIMES: AtomicUsize = AtomicUsize::new(0);

    fn lay_out(_: &Factors, _: FactorType) -> Result<Arc<usize>> {
        Ok(Arc::new(TIMES.fetch_add(1, Ordering::Relaxed)))
    }

    #[test]
    fn factors_are_laid_out_once_and_forgotten_with_their_adapter() {
        let packs = Packs::new(FactorType::F16, lay_out);
        let [one, other] = [Arc::new(Factors::default()), Arc::new(Factors::default())];
        for factors in [&one, &one, &other] {
            packs.pack(factors).expect("memory");
        }
        let laid = packs.of(&one, FactorType::F16).expect("there");
        assert!(Arc::ptr_eq(&laid, &packs.of(&one, FactorType::F16).expect("still there")));
        assert!(!Arc::ptr_eq(&laid, &packs.of(&other, FactorType::F16).expect("there")));
        assert_eq!(TIMES.load(Ordering::Relaxed), 2, "each once");
        packs.of(&one, FactorType::F32).expect("memory");
        assert_eq!(TIMES.load(Ordering::Relaxed), 3, "another kind is not kept");
        drop((one, other));
        packs.sweep();
        assert_eq!((packs.lock().len(), Arc::strong_count(&laid)), (0, 1));
    }
}
