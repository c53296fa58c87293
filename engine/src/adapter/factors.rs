//! LoRA factors of one adapter slot, in the form that plans and backends use.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use sha2::{Digest, Sha256};
use wattle_shaders::{FactorType, LayerMask};

use super::MAX_RANK;
use crate::error::{Error, Result};

/// A projection that can carry LoRA, by its role, whatever the family calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Target {
    /// Query projection (also the q rows of c_attn and qkv_proj).
    Q,
    /// Key projection.
    K,
    /// Value projection.
    V,
    /// Attention's output projection.
    O,
    /// Gate of a gated MLP.
    Gate,
    /// Up projection, c_fc, fc1.
    Up,
    /// Down projection, the MLP's c_proj, fc2.
    Down,
    /// OPT-350M's projection from the embedding's width.
    ProjectIn,
    /// OPT-350M's projection to the embedding's width.
    ProjectOut,
    /// The head.
    Head,
    /// The token embedding: A's columns belong to tokens.
    Embed,
}

/// Where factors apply: a target in a layer (or, with layer [`wattle_shaders::OUTSIDE_LAYERS`], outside them).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// The layer, or [`wattle_shaders::OUTSIDE_LAYERS`].
    pub layer: u32,
    /// The projection.
    pub target: Target,
}

/// y += B (A x): the scale is already in B.
#[derive(Clone, Debug, PartialEq)]
pub struct Pair {
    /// Rows of A, columns of B.
    pub rank: usize,
    /// Inputs.
    pub cols: usize,
    /// Outputs.
    pub rows: usize,
    /// \[rank, cols\], row-major.
    pub a: Vec<f32>,
    /// \[rows, rank\], row-major, multiplied by the adapter's scale.
    pub b: Vec<f32>,
}

/// The factors of one slot: one adapter, or several joined (A stacked, scaled B side by side).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Factors {
    pairs: BTreeMap<Place, Pair>,
    made: Made,
}

impl Factors {
    /// Factors of some places.
    pub fn new(pairs: BTreeMap<Place, Pair>) -> Self {
        Self { pairs, made: Made::default() }
    }

    /// Only places that have factors are listed. q, k and v of a fused c_attn or qkv_proj each have a copy of A.
    pub fn pairs(&self) -> &BTreeMap<Place, Pair> {
        &self.pairs
    }

    /// The same, to change them.
    pub fn pairs_mut(&mut self) -> &mut BTreeMap<Place, Pair> {
        self.made = Made::default();
        &mut self.pairs
    }

    /// SHA-256 of the content: adapters of the same digest do the same, whatever they are called. The first call reads
    /// all factors.
    pub fn digest(&self) -> [u8; 32] {
        *self.made.digest.get_or_init(|| {
            let mut hash = Sha256::new();
            for (place, pair) in &self.pairs {
                let sizes = [pair.rank, pair.cols, pair.rows].map(|size| size as u64);
                hash.update(place.layer.to_le_bytes());
                hash.update([place.target as u8]);
                hash.update(bytemuck::cast_slice(&sizes));
                hash.update(bytemuck::cast_slice(&pair.a));
                hash.update(bytemuck::cast_slice(&pair.b));
            }
            hash.finalize().into()
        })
    }

    /// What `lay_out` makes of these factors for slots that keep them so: made once, and shared by all who ask.
    ///
    /// # Errors
    /// Those of `lay_out`.
    pub(crate) fn laid_out<P: Send + Sync + 'static>(
        &self,
        kept: FactorType,
        lay_out: fn(&Self, FactorType) -> Result<P>,
    ) -> Result<Arc<P>> {
        if let Some(known) = find(&self.made.lock(), kept) {
            return Ok(known);
        }
        // Not under the lock: whoever does this may have given way to all other threads.
        let new = Arc::new(lay_out(self, kept)?);
        let mut laid_out = self.made.lock();
        Ok(find(&laid_out, kept).unwrap_or_else(|| {
            laid_out.push((kept, Arc::clone(&new) as Arc<dyn Any + Send + Sync>));
            new
        }))
    }

    /// Whether the sizes of every pair are those of its numbers.
    ///
    /// # Errors
    /// [`Error::Value`] that names the place.
    pub fn check(&self) -> Result<()> {
        for (place, Pair { rank, cols, rows, a, b }) in &self.pairs {
            let fits = |side: usize, values: &[f32]| side.checked_mul(*rank) == Some(values.len());
            if !(1..=MAX_RANK).contains(rank) || !fits(*cols, a) || !fits(*rows, b) {
                let (a, b) = (a.len(), b.len());
                let expected =
                    format!("[{rank}, {cols}] and [{rows}, {rank}], and a rank of 1 to {MAX_RANK}");
                let reason = format!("A has {a} numbers and B {b}, expected {expected}");
                return Err(Error::value(format!("factors of {place:?}"), reason));
            }
        }
        Ok(())
    }

    /// The mask bits that make a difference.
    pub fn layers(&self) -> LayerMask {
        LayerMask(self.pairs.keys().fold(0, |bits, place| bits | 1 << place.layer.min(127)))
    }
}

/// What was made of factors that may be needed again, kept for as long as they are.
#[derive(Default)]
struct Made {
    digest: OnceLock<[u8; 32]>,
    /// As backends want them, by how slots keep them.
    laid_out: Mutex<LaidOut>,
}

type LaidOut = Vec<(FactorType, Arc<dyn Any + Send + Sync>)>;

/// What a backend, which knows by its type what is its own, made for slots that keep factors so.
fn find<P: Send + Sync + 'static>(laid_out: &LaidOut, kept: FactorType) -> Option<Arc<P>> {
    let same = laid_out.iter().filter(|(known, _)| *known == kept);
    same.filter_map(|(_, made)| Arc::clone(made).downcast().ok()).next()
}

impl Made {
    fn lock(&self) -> MutexGuard<'_, LaidOut> {
        // A list is whole even where a thread panicked while it held the lock.
        self.laid_out.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Of a copy, which may be changed, nothing was made yet.
impl Clone for Made {
    fn clone(&self) -> Self {
        Self::default()
    }
}

/// Equal factors are equal whatever was made of them.
impl PartialEq for Made {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl fmt::Debug for Made {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Made").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_of_the_content() {
        let pair = Pair { rank: 1, cols: 2, rows: 1, a: vec![1.0, 2.0], b: vec![3.0] };
        let factors = |layer, pair: &Pair| {
            Factors::new(BTreeMap::from([(Place { layer, target: Target::Q }, pair.clone())]))
        };
        let one = factors(3, &pair);
        assert_eq!((one.digest(), one.layers()), (factors(3, &pair).digest(), LayerMask::of([3])));
        let scaled = Pair { b: vec![3.5], ..pair.clone() };
        assert_ne!(one.digest(), factors(3, &scaled).digest());
        assert_ne!(one.digest(), factors(4, &pair).digest());
        let mut changed = one.clone();
        changed.pairs_mut().clear();
        assert_ne!(one.digest(), changed.digest());
    }

    #[test]
    fn factors_are_laid_out_once_for_each_backend_and_way_and_freed_with_them() {
        fn names(_: &Factors, kept: FactorType) -> Result<String> {
            Ok(format!("{kept:?}"))
        }
        fn sizes(factors: &Factors, kept: FactorType) -> Result<usize> {
            Ok(factors.pairs().len() + kept.bytes())
        }
        let factors = Factors::default();
        let name = factors.laid_out(FactorType::F16, names).unwrap();
        assert!(Arc::ptr_eq(&name, &factors.laid_out(FactorType::F16, names).unwrap()));
        assert!(!Arc::ptr_eq(&name, &factors.laid_out(FactorType::F32, names).unwrap()));
        assert_eq!(*factors.laid_out(FactorType::F16, sizes).unwrap(), 2);
        assert!(!Arc::ptr_eq(&name, &factors.clone().laid_out(FactorType::F16, names).unwrap()));
        let failed = |_: &Factors, _| -> Result<u8> { Err(Error::value("adapter", "no memory")) };
        assert!(factors.laid_out(FactorType::F16, failed).is_err());
        drop(factors);
        assert_eq!(Arc::strong_count(&name), 1);
    }
}
