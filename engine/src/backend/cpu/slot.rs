//! The adapters that rows name.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use half::f16;
use wattle_kernels_cpu::fast::{self, Factor};

use crate::adapter::{Factors, Pair, Place};
use crate::error::{Error, Result};
use crate::model::{AlignedBytes, Bytes};
use crate::plan::FactorType;

/// An adapter.
pub(super) struct Slot {
    pub factors: Arc<Factors>,
    /// As the fast kernels read them, kept as the plans want; none for the plain twins.
    packed: BTreeMap<FactorType, Arc<PackedFactors>>,
}

/// An adapter's factors by place.
pub(super) type PackedFactors = BTreeMap<Place, Packed>;

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
    /// What halves are multiplied by; `None`: they are f32.
    scale: Option<f32>,
}

impl Values {
    fn view(&self) -> Factor<'_> {
        let bytes = self.bytes.as_ref();
        match self.scale {
            Some(scale) => Factor::F16(bytemuck::cast_slice::<u8, f16>(bytes), scale),
            None => Factor::F32(bytemuck::cast_slice(bytes)),
        }
    }
}

impl Slot {
    /// Not packed.
    pub fn new(factors: Arc<Factors>) -> Self {
        Self { factors, packed: BTreeMap::new() }
    }

    /// Has the factors packed, unless they are already.
    ///
    /// # Errors
    /// [`Error::Value`] when there is no memory for them: others run on without.
    pub fn pack(&mut self, kept: FactorType) -> Result<()> {
        if let Entry::Vacant(vacant) = self.packed.entry(kept) {
            vacant.insert(self.factors.laid_out(kept, pack)?);
        }
        Ok(())
    }

    /// The factors of a place, packed so.
    pub fn packed(&self, place: &Place, kept: FactorType) -> Option<&Packed> {
        self.packed.get(&kept)?.get(place)
    }

    /// Bytes of the factors as the kernels read them.
    pub fn bytes(&self) -> usize {
        if self.packed.is_empty() {
            return self.factors.pairs().values().map(|pair| 4 * (pair.a.len() + pair.b.len())).sum();
        }
        let places = self.packed.values().flat_map(|pack| pack.values());
        places.flat_map(|packed| [&packed.a, &packed.b]).map(|values| values.bytes.as_ref().len()).sum()
    }
}

/// Where a factor may begin: at a line of the caches.
const ALIGNED: usize = 64;

/// All factors in one piece of memory, in the order of layers: a step reads each of them once, and would otherwise wait
/// for the translation of an address every 4 KiB.
///
/// # Errors
/// [`Error::Value`] when there is no memory for them.
pub(super) fn pack(factors: &Factors, kept: FactorType) -> Result<PackedFactors> {
    let pack = |(&place, pair): (&Place, &Pair)| {
        let a = fast::Factors::down(&pair.a, kept);
        (place, pair.rank, [a, fast::Factors::up(&pair.b, pair.rank, kept)])
    };
    let single: Vec<_> = factors.pairs().iter().map(pack).collect();
    let sizes =
        single.iter().flat_map(|(.., pair)| pair).map(|factor| factor.bytes().next_multiple_of(ALIGNED));
    let no_memory = || Error::value("adapter", "there is no memory for its factors");
    let mut all = AlignedBytes::zeroed(sizes.sum()).ok_or_else(no_memory)?;
    let mut end = 0;
    let mut put = |factor: &fast::Factors| {
        let (bytes, scale) = match factor.view() {
            Factor::F32(values) => (bytemuck::cast_slice(values), None),
            Factor::F16(values, scale) => (bytemuck::cast_slice(values), Some(scale)),
        };
        let start = end;
        all.as_mut()[start..][..bytes.len()].copy_from_slice(bytes);
        end += bytes.len().next_multiple_of(ALIGNED);
        (start, bytes.len(), scale)
    };
    let mut placed = Vec::new();
    for (place, rank, pair) in &single {
        placed.push((*place, *rank, pair.each_ref().map(&mut put)));
    }
    let all = Bytes::new(all);
    let values = |(start, len, scale)| Some(Values { bytes: all.slice(start, len)?, scale });
    let mut packed = BTreeMap::new();
    for (place, rank, [a, b]) in placed {
        let (a, b) = values(a).zip(values(b)).ok_or_else(no_memory)?;
        packed.insert(place, Packed { rank, a, b });
    }
    Ok(packed)
}
