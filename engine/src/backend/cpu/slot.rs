//! The adapters that rows name.

use std::collections::BTreeMap;
use std::sync::Arc;

use wattle_kernels_cpu::fast::{self, Precision};

use super::Mode;
use crate::adapter::{Factors, Pair, Place};

/// An adapter.
pub(super) struct Slot {
    pub factors: Arc<Factors>,
    /// As the fast kernels read them; none for the plain twins. Slots of one adapter share them.
    pub packed: Arc<BTreeMap<Place, Packed>>,
}

/// The factors of a place.
pub(super) struct Packed {
    pub rank: usize,
    pub a: fast::Factors,
    pub b: fast::Factors,
}

impl Slot {
    /// Packs the factors, unless one of the `others` has them already.
    pub fn new<'a>(
        factors: Arc<Factors>,
        others: impl IntoIterator<Item = &'a Self>,
        mode: Mode,
        precision: Precision,
    ) -> Self {
        let same = others.into_iter().find(|slot| Arc::ptr_eq(&slot.factors, &factors));
        let pack = |(&place, pair): (&Place, &Pair)| {
            let a = fast::Factors::down(&pair.a, precision);
            (place, Packed { rank: pair.rank, a, b: fast::Factors::up(&pair.b, pair.rank, precision) })
        };
        let packed = match (same, mode) {
            (Some(slot), _) => Arc::clone(&slot.packed),
            (None, Mode::Fast) => Arc::new(factors.pairs.iter().map(pack).collect()),
            (None, Mode::Plain) => Arc::default(),
        };
        Self { factors, packed }
    }

    /// Bytes of the factors as the kernels read them.
    pub fn bytes(&self) -> usize {
        if self.packed.is_empty() {
            return self.factors.pairs.values().map(|pair| 4 * (pair.a.len() + pair.b.len())).sum();
        }
        self.packed.values().map(|packed| packed.a.bytes() + packed.b.bytes()).sum()
    }
}
