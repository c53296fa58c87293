//! The adapters that rows name.

use std::collections::BTreeMap;
use std::sync::Arc;

use half::f16;
use wattle_kernels_cpu::fast::{self, Factor, Precision};

use super::Mode;
use crate::adapter::{Factors, Pair, Place};
use crate::error::{Error, Result};
use crate::model::{AlignedBytes, Bytes};

/// An adapter.
pub(super) struct Slot {
    pub factors: Arc<Factors>,
    /// As the fast kernels read them; none for the plain twins. Slots of one adapter share them.
    pub packed: Arc<BTreeMap<Place, Packed>>,
}

/// The factors of a place.
pub(super) struct Packed {
    pub rank: usize,
    a: Values,
    b: Values,
}

impl Packed {
    /// A and B.
    pub fn view(&self) -> [Factor<'_>; 2] {
        [self.a.view(), self.b.view()]
    }
}

/// A factor's part of the memory of all.
struct Values {
    bytes: Bytes,
    half: bool,
}

impl Values {
    fn view(&self) -> Factor<'_> {
        let bytes = self.bytes.as_ref();
        if self.half {
            Factor::F16(bytemuck::cast_slice::<u8, f16>(bytes))
        } else {
            Factor::F32(bytemuck::cast_slice(bytes))
        }
    }
}

impl Slot {
    /// Packs the factors, unless one of the `others` has them already.
    ///
    /// # Errors
    /// [`Error::Value`] when there is no memory for them: others run on without.
    pub fn new<'a>(
        factors: Arc<Factors>,
        others: impl IntoIterator<Item = &'a Self>,
        mode: Mode,
        precision: Precision,
    ) -> Result<Self> {
        let same = others.into_iter().find(|slot| Arc::ptr_eq(&slot.factors, &factors));
        let packed = match (same, mode) {
            (Some(slot), _) => Arc::clone(&slot.packed),
            (None, Mode::Fast) => Arc::new(pack(&factors, precision)?),
            (None, Mode::Plain) => Arc::default(),
        };
        Ok(Self { factors, packed })
    }

    /// Bytes of the factors as the kernels read them.
    pub fn bytes(&self) -> usize {
        if self.packed.is_empty() {
            return self.factors.pairs.values().map(|pair| 4 * (pair.a.len() + pair.b.len())).sum();
        }
        let values = self.packed.values().flat_map(|packed| [&packed.a, &packed.b]);
        values.map(|values| values.bytes.as_ref().len()).sum()
    }
}

/// Where a factor may begin: at a line of the caches.
const ALIGNED: usize = 64;

/// All factors in one piece of memory, in the order of layers: a step reads each of them once, and would otherwise wait
/// for the translation of an address every 4 KiB.
fn pack(factors: &Factors, precision: Precision) -> Result<BTreeMap<Place, Packed>> {
    let pack = |(&place, pair): (&Place, &Pair)| {
        let a = fast::Factors::down(&pair.a, precision);
        (place, pair.rank, [a, fast::Factors::up(&pair.b, pair.rank, precision)])
    };
    let single: Vec<_> = factors.pairs.iter().map(pack).collect();
    let sizes =
        single.iter().flat_map(|(.., pair)| pair).map(|factor| factor.bytes().next_multiple_of(ALIGNED));
    let no_memory = || Error::value("adapter", "there is no memory for its factors");
    let mut all = AlignedBytes::zeroed(sizes.sum()).ok_or_else(no_memory)?;
    let mut end = 0;
    let mut put = |factor: &fast::Factors| {
        let (bytes, half) = match factor.view() {
            Factor::F32(values) => (bytemuck::cast_slice(values), false),
            Factor::F16(values) => (bytemuck::cast_slice(values), true),
        };
        let start = end;
        all.as_mut()[start..][..bytes.len()].copy_from_slice(bytes);
        end += bytes.len().next_multiple_of(ALIGNED);
        (start, bytes.len(), half)
    };
    let mut placed = Vec::new();
    for (place, rank, pair) in &single {
        placed.push((*place, *rank, pair.each_ref().map(&mut put)));
    }
    let all = Bytes::new(all);
    let values = |(start, len, half)| Some(Values { bytes: all.slice(start, len)?, half });
    let mut packed = BTreeMap::new();
    for (place, rank, [a, b]) in placed {
        let (a, b) = values(a).zip(values(b)).ok_or_else(no_memory)?;
        packed.insert(place, Packed { rank, a, b });
    }
    Ok(packed)
}
