//! LoRA factors of one adapter slot, in the form that plans and backends use.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};
use wattle_shaders::LayerMask;

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
    /// Only places that have factors are listed. q, k and v of a fused c_attn or qkv_proj each have a copy of A.
    pub pairs: BTreeMap<Place, Pair>,
}

impl Factors {
    /// SHA-256 of the content: adapters of the same digest do the same, whatever they are called.
    pub fn digest(&self) -> [u8; 32] {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_of_the_content() {
        let pair = Pair { rank: 1, cols: 2, rows: 1, a: vec![1.0, 2.0], b: vec![3.0] };
        let factors = |layer, pair: &Pair| Factors {
            pairs: [(Place { layer, target: Target::Q }, pair.clone())].into(),
        };
        let one = factors(3, &pair);
        assert_eq!((one.digest(), one.layers()), (factors(3, &pair).digest(), LayerMask::of([3])));
        let scaled = Pair { b: vec![3.5], ..pair.clone() };
        assert_ne!(one.digest(), factors(3, &scaled).digest());
        assert_ne!(one.digest(), factors(4, &pair).digest());
    }
}
