//! How good answers are with LoRA in some layers: measured where there are measurements, else a stated stand-in.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The task score of every set of layers, 0 to 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Quality {
    /// *Wattle's stand-in* for models whose weights are not here; no claim about any model.
    StandIn(StandIn),
    /// Accuracy of real runs through the engine.
    Measured(Measured),
}

/// score(S) = base + gain · (1 − e^(−c/s)) / (1 − e^(−1/s)), c = the chosen layers' share of all importance, s = 0.25.
///
/// Importance of the layer at relative depth x is 0.1 + 1.5 x²: it goes through what leaving one layer's LoRA out is
/// said to cost by TLC-Calibrator's layer study (below 0.1 points at the first layer, below 0.5 at a third, 0.7 to 1.2
/// at two thirds, 1.2 to 2.0 at the last). s makes gains small beyond four layers, as the carbon paper reports.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StandIn {
    /// Score without LoRA.
    pub base: f64,
    /// What LoRA in all layers adds.
    pub gain: f64,
    /// Layers of the model.
    pub layers: usize,
}

/// Accuracy by set of layers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Layers of the model.
    pub layers: usize,
    /// How it was measured.
    pub source: String,
    /// Accuracy of every set of layers that was run; the key's bit l is layer l.
    pub accuracy: BTreeMap<u128, f64>,
}

impl StandIn {
    /// Saturation of the gain over importance.
    const SATURATION: f64 = 0.25;

    fn importance(&self, layer: usize) -> f64 {
        let depth = (layer + 1) as f64 / self.layers.max(1) as f64;
        0.1 + 1.5 * depth * depth
    }

    fn score(&self, layers: u128) -> f64 {
        let all: f64 = (0..self.layers).map(|layer| self.importance(layer)).sum();
        let chosen = (0..self.layers).filter(|layer| layers >> layer & 1 == 1);
        let share = chosen.map(|layer| self.importance(layer)).sum::<f64>() / all;
        let saturated = |share: f64| 1.0 - (-share / Self::SATURATION).exp();
        self.base + self.gain * saturated(share) / saturated(1.0)
    }
}

impl Quality {
    /// Checks what a file said.
    ///
    /// # Errors
    /// Scores outside 0 to 1, no layers, sets of layers that were not measured.
    pub fn check(&self, name: &str) -> Result<()> {
        let error = |reason: &str| Err(Error::new(format!("quality of {name}"), reason));
        let unit = |score: f64| (0.0..=1.0).contains(&score);
        let layers = self.layers();
        if !(1..=127).contains(&layers) {
            return error("its layers are not between 1 and 127");
        }
        match self {
            Self::StandIn(s) if !unit(s.base) || !unit(s.base + s.gain) => error("scores leave 0 to 1"),
            Self::Measured(m) if !m.accuracy.values().all(|&score| unit(score)) => {
                error("scores leave 0 to 1")
            }
            Self::Measured(m) if layers > 16 || m.accuracy.len() != 1 << layers => {
                error("not every set of layers was measured (at most 16 layers)")
            }
            Self::Measured(m) if m.accuracy.keys().any(|&set| set >> layers != 0) => {
                error("sets name other layers")
            }
            _ => Ok(()),
        }
    }

    /// Layers of the model.
    pub fn layers(&self) -> usize {
        match self {
            Self::StandIn(stand_in) => stand_in.layers,
            Self::Measured(measured) => measured.layers,
        }
    }

    /// The score with LoRA in these layers, 0 to 1.
    pub fn score(&self, layers: u128) -> f64 {
        let score = match self {
            Self::StandIn(stand_in) => stand_in.score(layers),
            Self::Measured(measured) => {
                let set = layers & crate::workload::all_layers(measured.layers);
                measured.accuracy.get(&set).copied().unwrap_or(0.0)
            }
        };
        score.clamp(0.0, 1.0)
    }

    /// Which layers stand for "k layers": the deepest k, which the stand-in values most; of measured sets of k the best
    /// (the lowest of several).
    pub fn pick(&self, count: usize) -> u128 {
        let layers = self.layers();
        let count = count.min(layers);
        match self {
            Self::StandIn(_) => crate::workload::all_layers(count) << (layers - count),
            Self::Measured(measured) => {
                let sets = measured.accuracy.iter().filter(|(set, _)| set.count_ones() as usize == count);
                let best = sets.fold(None, |best: Option<(u128, f64)>, (&set, &score)| match best {
                    Some((_, highest)) if score <= highest => best,
                    _ => Some((set, score)),
                });
                best.map_or(0, |(set, _)| set)
            }
        }
    }

    /// Whether scores come from real runs.
    pub fn is_measured(&self) -> bool {
        matches!(self, Self::Measured(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stand_in_by_hand() {
        let quality = Quality::StandIn(StandIn { base: 0.3, gain: 0.4, layers: 2 });
        assert_eq!(quality.score(0), 0.3);
        assert!((quality.score(0b11) - 0.7).abs() < 1e-12);
        // Importances 0.475 and 1.6: the last layer has a share of 0.77108.
        let share: f64 = 1.6 / 2.075;
        let expected = 0.3 + 0.4 * (1.0 - (-4.0 * share).exp()) / (1.0 - (-4.0f64).exp());
        assert!((quality.score(0b10) - expected).abs() < 1e-12);
        assert_eq!((quality.pick(1), quality.pick(2), quality.pick(9)), (0b10, 0b11, 0b11));
    }

    #[test]
    fn of_measured_sets_the_best_stands_for_its_size() {
        let accuracy = BTreeMap::from([(0, 0.2), (1, 0.5), (2, 0.5), (3, 0.9)]);
        let measured = Measured { layers: 2, source: "a test".into(), accuracy };
        let quality = Quality::Measured(measured.clone());
        assert!(quality.check("m").is_ok() && quality.is_measured());
        assert_eq!((quality.pick(0), quality.pick(1), quality.pick(2)), (0, 1, 3));
        let lacking = Measured { accuracy: BTreeMap::from([(0, 0.2)]), ..measured };
        assert!(Quality::Measured(lacking).check("m").unwrap_err().to_string().contains("quality of m"));
        let high = StandIn { base: 0.8, gain: 0.4, layers: 2 };
        assert!(Quality::StandIn(high).check("m").is_err());
    }
}
