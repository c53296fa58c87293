//! Gates: whether an adapter is on in a layer, decided on the device from the hidden state that enters the layer
//! (TLC-Calibrator, tier 1: "send h if score > τ1").

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use wattle_kernels_cpu::gate::{FEATURES, weights_len};

use crate::cache::Digest;
use crate::error::{Error, Result};
use crate::model::{Spec, TensorFile, to_f32};

/// Units of a hidden layer at most: the MLP is run by every lane of a workgroup.
const MAX_HIDDEN: usize = 256;

/// What a gate knows of a hidden state, in the order of its inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// ‖h‖₂.
    Length,
    /// The mean of its elements.
    Mean,
    /// Their maximum.
    Maximum,
    /// √(mean(((h − c) s)²)): the distance from frozen constants c, in units of 1/s (*ours*: the paper's positional
    /// standard deviation needs more than the token at hand, and what a token gets must not depend on others).
    Distance,
}

/// The gate of one layer: sigmoid(d · relu(U f + b) + e) of the features f is its score; LoRA is on where the score is
/// above the threshold.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerGate {
    /// Which layer.
    pub layer: u32,
    /// Units of the hidden layer.
    pub hidden: usize,
    /// c \[width\], s \[width\], U \[hidden, 4\], b \[hidden\], d \[hidden\], e.
    pub weights: Vec<f32>,
    /// τ1.
    pub threshold: f32,
}

impl LayerGate {
    /// Whether the weights are those of a hidden state of this width.
    pub(crate) fn fits(&self, width: usize) -> bool {
        self.hidden <= MAX_HIDDEN && self.weights.len() == weights_len(width, self.hidden)
    }
}

/// Gates for some layers of a model; the others are not gated. An engine has one
/// ([`crate::EngineOptions::gate`]), requests say whether they obey it ([`crate::Lora::gated`]).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Gate {
    layers: BTreeMap<u32, Arc<LayerGate>>,
    file: Option<PathBuf>,
}

impl Gate {
    /// A gate that lets LoRA through in these layers where a feature of the hidden state is above `least`.
    pub fn above(width: usize, layers: impl IntoIterator<Item = u32>, feature: Feature, least: f32) -> Self {
        let mut unit = [0.0; FEATURES];
        unit[feature as usize] = 1.0;
        // relu(f − least) − relu(least − f) = f − least, and sigmoid(0) = 1/2.
        let up = [unit, unit.map(|u: f32| -u)].concat();
        let mlp = [up, vec![-least, least], vec![1.0, -1.0], vec![0.0]].concat();
        let weights = [vec![0.0; width], vec![1.0; width], mlp].concat();
        let of = |layer| {
            let gate = LayerGate { layer, hidden: 2, weights: weights.clone(), threshold: 0.5 };
            (layer, Arc::new(gate))
        };
        Self { layers: layers.into_iter().map(of).collect(), file: None }
    }

    /// A gate of these layers' gates; of several for a layer the last counts.
    pub fn of(gates: impl IntoIterator<Item = LayerGate>) -> Self {
        let gates = gates.into_iter().map(|gate| (gate.layer, Arc::new(gate)));
        Self { layers: gates.collect(), file: None }
    }

    /// Reads a safetensors file: for each gated layer l, `layers.l.center` and `layers.l.scale` \[width\],
    /// `layers.l.up.weight` \[hidden, 4\], `layers.l.up.bias` \[hidden\], `layers.l.down.weight` \[hidden\],
    /// `layers.l.down.bias` \[1\] and `layers.l.threshold` \[1\]; F32, F16 or BF16.
    ///
    /// # Errors
    /// [`Error::Field`] that names the tensor.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let file = TensorFile::open(path.as_ref())?;
        let mut layers = BTreeMap::new();
        for name in file.names() {
            let known = name.strip_prefix("layers.").and_then(|rest| rest.split_once('.'));
            let layer = known.and_then(|(layer, part)| Some((layer.parse().ok()?, part)));
            match layer {
                Some((layer, "center")) => {
                    layers.insert(layer, Arc::new(read(&file, layer)?));
                }
                Some((_, "scale" | "up.weight" | "up.bias" | "down.weight" | "down.bias" | "threshold")) => {}
                _ => return Err(Error::field(file.path(), name, "is no tensor of a gate; see Gate::load")),
            }
        }
        if layers.is_empty() {
            return Err(Error::file(file.path(), "no layers.0.center or that of another layer: no gate"));
        }
        Ok(Self { layers, file: Some(file.path().to_path_buf()) })
    }

    /// SHA-256 of what the gates are made of.
    pub(crate) fn digest(&self) -> Digest {
        let mut hash = Sha256::new();
        for gate in self.layers() {
            hash.update(gate.layer.to_le_bytes());
            hash.update((gate.hidden as u64).to_le_bytes());
            hash.update(gate.threshold.to_le_bytes());
            hash.update((gate.weights.len() as u64).to_le_bytes());
            hash.update(bytemuck::cast_slice(&gate.weights));
        }
        hash.finalize().into()
    }

    /// The gates, by ascending layer.
    pub fn layers(&self) -> impl Iterator<Item = &Arc<LayerGate>> {
        self.layers.values()
    }

    /// Whether the gate fits the model.
    ///
    /// # Errors
    /// [`Error::Field`] or [`Error::Value`] that names the layer.
    pub fn check(&self, spec: &Spec) -> Result<()> {
        let wrong = |layer: u32, reason: String| {
            let name = format!("layers.{layer}");
            Err(self.file.as_ref().map_or_else(
                || Error::value(format!("gate {name}"), &reason),
                |file| Error::field(file, &name, &reason),
            ))
        };
        for gate in self.layers() {
            if gate.layer as usize >= spec.layers {
                return wrong(gate.layer, format!("the model has {} layers", spec.layers));
            }
            if !gate.fits(spec.width) {
                return wrong(gate.layer, format!("made for another width than the model's {}", spec.width));
            }
            if !gate.weights.iter().chain([&gate.threshold]).all(|value| value.is_finite()) {
                return wrong(gate.layer, "some value is not finite".into());
            }
        }
        Ok(())
    }
}

fn read(file: &TensorFile, layer: u32) -> Result<LayerGate> {
    let name = |part: &str| format!("layers.{layer}.{part}");
    let size = |part: &str| {
        let shape = file.shape(&name(part)).unwrap_or_default();
        shape.first().copied().unwrap_or(0)
    };
    let (width, hidden) = (size("center"), size("up.weight"));
    if hidden > MAX_HIDDEN {
        let reason = format!("{hidden} units; at most {MAX_HIDDEN} are accepted");
        return Err(Error::field(file.path(), name("up.weight"), reason));
    }
    let values = |part: &str, shape: &[usize]| -> Result<Vec<f32>> {
        let (dtype, bytes) = file.tensor(&name(part), shape)?;
        Ok(to_f32(bytes.as_ref(), dtype))
    };
    let parts = [
        values("center", &[width])?,
        values("scale", &[width])?,
        values("up.weight", &[hidden, FEATURES])?,
        values("up.bias", &[hidden])?,
        values("down.weight", &[hidden])?,
        values("down.bias", &[1])?,
    ];
    Ok(LayerGate { layer, hidden, weights: parts.concat(), threshold: values("threshold", &[1])?[0] })
}
