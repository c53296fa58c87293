//! Adapters for measuring: random, not zero, on all linear layers.

use std::collections::BTreeMap;
use std::sync::Arc;

use wattle_engine::adapter::{ActivationRule, Adapter, Factors, Pair, Place, projections};
use wattle_engine::model::Weights;

/// An adapter of this rank on every projection of every layer. Its factors are small, so that activations stay finite.
pub(crate) fn random_adapter(weights: &Weights, rank: usize, seed: u64) -> Adapter {
    let mut random = Random(seed);
    let mut pairs = BTreeMap::new();
    for (layer, layer_weights) in weights.layers.iter().enumerate() {
        for (target, linear) in projections(layer_weights) {
            let (rows, cols) = (linear.weight.rows, linear.weight.cols);
            let a = random.values(rank * cols, 1.0 / (cols as f32).sqrt());
            let b = random.values(rows * rank, 0.1 / (rank as f32).sqrt());
            pairs.insert(Place { layer: layer as u32, target }, Pair { rank, cols, rows, a, b });
        }
    }
    let name = format!("random-{seed}");
    Adapter { name, factors: Arc::new(Factors::new(pairs)), rule: ActivationRule::Always }
}

/// SplitMix64 (Steele, Lea & Flood 2014): good enough for weights that mean nothing.
pub(crate) struct Random(pub u64);

impl Random {
    /// The next 64 bits.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform in ±`limit`.
    fn values(&mut self, count: usize, limit: f32) -> Vec<f32> {
        let unit = |bits: u64| (bits >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
        (0..count).map(|_| unit(self.next()) * limit).collect()
    }
}
