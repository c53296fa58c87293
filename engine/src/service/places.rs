//! The bounded queue, as places that waiting requests hold.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// Places of a queue, shared by those who submit.
#[derive(Clone)]
pub(super) struct Places(Arc<Inner>);

struct Inner {
    limit: usize,
    taken: Mutex<usize>,
    freed: Condvar,
}

/// A place, free again when it is dropped.
pub(super) struct Place(Arc<Inner>);

impl Places {
    pub fn new(limit: usize) -> Self {
        Self(Arc::new(Inner { limit, taken: Mutex::new(0), freed: Condvar::new() }))
    }

    /// Takes a place; waits for one until `patience` is over.
    ///
    /// # Errors
    /// [`Error::Busy`] when there is none.
    pub fn take(&self, patience: Duration) -> Result<Place> {
        let inner = &*self.0;
        let until = Instant::now().checked_add(patience);
        let mut taken = inner.lock();
        while *taken >= inner.limit {
            // Without an end that can be told, one turn of an hour after the other.
            let left = until.map_or(Duration::from_secs(3600), |until| until.duration_since(Instant::now()));
            if left.is_zero() {
                return Err(Error::Busy(format!("{} requests wait already, the most that may", inner.limit)));
            }
            taken = inner.freed.wait_timeout(taken, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        *taken += 1;
        Ok(Place(Arc::clone(&self.0)))
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, usize> {
        // A number is whole even where a thread panicked while it held the lock.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        *self.0.lock() -= 1;
        self.0.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_refuses_and_whoever_waits_gets_the_place_that_becomes_free() {
        let places = Places::new(1);
        let first = places.take(Duration::ZERO).expect("a place");
        assert!(matches!(places.take(Duration::ZERO), Err(Error::Busy(_))));
        let patient = std::thread::spawn({
            let places = places.clone();
            move || places.take(Duration::MAX).is_ok()
        });
        drop(first);
        assert!(patient.join().expect("no panic"));
        assert!(places.take(Duration::ZERO).is_ok());
    }
}
