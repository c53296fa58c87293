//! Rotary angles as a table, made once: device sines lose accuracy at large positions.

use crate::model::Rope;

/// What the table of cosines and sines is made of.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeTable {
    /// The model's rotation.
    pub rope: Rope,
}

impl RopeTable {
    /// Pairs per position.
    pub fn pairs(&self) -> usize {
        self.rope.rotary_dim / 2
    }

    /// Factor sets: 2 with longrope, else 1.
    pub fn sets(&self) -> usize {
        1 + usize::from(self.rope.long.is_some())
    }

    /// f32 \[sets, positions, pairs, 2\]: cos and sin of position × frequency, times the attention factor.
    ///
    /// The product is rounded to f32 first, as transformers does.
    pub fn values(&self, positions: usize) -> Vec<f32> {
        let mut values = Vec::with_capacity(self.sets() * positions * self.pairs() * 2);
        let long = self.rope.long.iter().map(|long| &long.inv_freq);
        for frequencies in std::iter::once(&self.rope.inv_freq).chain(long) {
            for position in 0..positions {
                for &frequency in frequencies {
                    let (sin, cos) = f64::from(position as f32 * frequency).sin_cos();
                    values.extend([cos as f32, sin as f32].map(|x| x * self.rope.attention_factor));
                }
            }
        }
        values
    }
}
