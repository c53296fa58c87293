//! The policy's network at run time: plain f32 arithmetic over safetensors, with nothing of what trained it.

use safetensors::{Dtype, SafeTensors};

use crate::error::{Error, Result};

/// The widest layer that is read.
const MAX_WIDTH: usize = 4096;
/// The most layers that are read.
const MAX_DEPTH: usize = 16;

/// y = W x + b.
#[derive(Clone, Debug, PartialEq)]
struct Dense {
    /// \[outputs, inputs\], row-major.
    weight: Vec<f32>,
    /// \[outputs\].
    bias: Vec<f32>,
    inputs: usize,
}

/// Layers with tanh between them; the last one gives logits.
#[derive(Clone, Debug, PartialEq)]
pub struct Network {
    layers: Vec<Dense>,
}

impl Network {
    /// The network of `prefix.0.weight`, `prefix.0.bias`, `prefix.1.weight`, … that maps `inputs` features to `outputs`
    /// logits.
    ///
    /// # Errors
    /// Names the tensor that is missing, not F32, of another shape, or not finite.
    pub fn read(tensors: &SafeTensors, prefix: &str, inputs: usize, outputs: usize) -> Result<Self> {
        let mut layers: Vec<Dense> = Vec::new();
        let mut width = inputs;
        while layers.len() < MAX_DEPTH {
            let name = format!("{prefix}.{}.weight", layers.len());
            let Ok(weight) = tensors.tensor(&name) else { break };
            let &[rows, cols] = weight.shape() else {
                return Err(Error::new(name, "expected [outputs, inputs]"));
            };
            if cols != width || rows == 0 || rows > MAX_WIDTH {
                let reason =
                    format!("[{rows}, {cols}] where inputs are {width} and outputs 1 to {MAX_WIDTH}");
                return Err(Error::new(name, reason));
            }
            let bias = format!("{prefix}.{}.bias", layers.len());
            let (weight, bias) = (values(tensors, &name, &[rows, cols])?, values(tensors, &bias, &[rows])?);
            layers.push(Dense { weight, bias, inputs: width });
            width = rows;
        }
        if layers.is_empty() || width != outputs {
            let reason = format!("expected layers {prefix}.0 and on that end in {outputs} outputs");
            return Err(Error::new("policy", reason));
        }
        Ok(Self { layers })
    }

    /// A network of these layers: weights \[outputs, inputs\], row-major, and biases \[outputs\].
    ///
    /// # Errors
    /// When a layer's sizes do not agree.
    pub fn new(layers: Vec<(Vec<f32>, Vec<f32>)>) -> Result<Self> {
        let dense = |(weight, bias): (Vec<f32>, Vec<f32>)| {
            let inputs = weight.len() / bias.len().max(1);
            let fits = inputs > 0 && inputs * bias.len() == weight.len();
            let error = || Error::new("network", "a layer's weight and bias do not agree");
            fits.then_some(Dense { weight, bias, inputs }).ok_or_else(error)
        };
        Ok(Self { layers: layers.into_iter().map(dense).collect::<Result<_>>()? })
    }

    /// Logits of the features.
    pub fn logits(&self, features: &[f32]) -> Vec<f32> {
        let mut x = features.to_vec();
        for (index, layer) in self.layers.iter().enumerate() {
            let last = index + 1 == self.layers.len();
            let row = |(row, &bias): (&[f32], &f32)| {
                let sum = row.iter().zip(&x).map(|(w, x)| w * x).sum::<f32>() + bias;
                if last { sum } else { sum.tanh() }
            };
            x = layer.weight.chunks(layer.inputs.max(1)).zip(&layer.bias).map(row).collect();
        }
        x
    }

    /// The most probable allowed value of each component (the first of several).
    pub fn decide(&self, features: &[f32], components: &[usize], mask: &[bool]) -> Vec<usize> {
        let logits = self.logits(features);
        let mut start = 0;
        let best = |&size: &usize| {
            let range = start..start + size;
            start += size;
            let allowed = range.clone().filter(|&i| mask.get(i).copied().unwrap_or(false));
            let value = |i: usize| logits.get(i).copied().unwrap_or(f32::NEG_INFINITY);
            let best = allowed.reduce(|best, i| if value(i) > value(best) { i } else { best });
            best.map_or(0, |i| i - range.start)
        };
        components.iter().map(best).collect()
    }
}

/// An F32 tensor of this shape, all finite.
fn values(tensors: &SafeTensors, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
    let tensor = tensors.tensor(name).map_err(|error| Error::new(name, error))?;
    if tensor.dtype() != Dtype::F32 || tensor.shape() != shape {
        let reason = format!("{:?} {:?}, expected F32 {shape:?}", tensor.dtype(), tensor.shape());
        return Err(Error::new(name, reason));
    }
    let (words, _) = tensor.data().as_chunks::<4>();
    let values: Vec<f32> = words.iter().map(|word| f32::from_le_bytes(*word)).collect();
    match values.iter().all(|value| value.is_finite()) {
        true => Ok(values),
        false => Err(Error::new(name, "has values that are not finite")),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use safetensors::tensor::TensorView;

    /// A file of these tensors.
    pub(crate) fn file(
        tensors: &[(&str, Vec<usize>, Vec<f32>)],
        metadata: Option<std::collections::HashMap<String, String>>,
    ) -> Vec<u8> {
        let bytes: Vec<Vec<u8>> = tensors
            .iter()
            .map(|(_, _, values)| values.iter().flat_map(|v| v.to_le_bytes()).collect())
            .collect();
        let views = tensors.iter().zip(&bytes).map(|((name, shape, _), bytes)| {
            (*name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap())
        });
        safetensors::serialize(views, metadata).unwrap()
    }

    fn small() -> Vec<u8> {
        file(
            &[
                ("policy.0.weight", vec![2, 2], vec![1.0, 0.0, 0.0, 2.0]),
                ("policy.0.bias", vec![2], vec![0.0, 0.5]),
                ("policy.1.weight", vec![3, 2], vec![1.0, 0.0, 0.0, 1.0, 1.0, 1.0]),
                ("policy.1.bias", vec![3], vec![0.0, 0.0, -0.5]),
            ],
            None,
        )
    }

    #[test]
    fn a_network_by_hand() {
        let bytes = small();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let network = Network::read(&tensors, "policy", 2, 3).unwrap();
        let (a, b) = (0.5f32.tanh(), (2.0f32 * 0.25 + 0.5).tanh());
        assert_eq!(network.logits(&[0.5, 0.25]), [a, b, a + b - 0.5]);
        assert_eq!(network.decide(&[0.5, 0.25], &[3], &[true; 3]), [1]);
        assert_eq!(network.decide(&[0.5, 0.25], &[3], &[true, false, true]), [2]);
        assert_eq!(network.decide(&[0.5, 0.25], &[3], &[false; 3]), [0]);
    }

    #[test]
    fn what_is_no_network_is_refused_by_name() {
        let bytes = small();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let message = |prefix, inputs, outputs| {
            Network::read(&tensors, prefix, inputs, outputs).unwrap_err().to_string()
        };
        assert!(message("policy", 3, 3).contains("policy.0.weight"));
        assert!(message("policy", 2, 4).contains("4 outputs"));
        assert!(message("value", 2, 3).contains("value.0"));
        let nan = file(
            &[("policy.0.weight", vec![1, 1], vec![f32::NAN]), ("policy.0.bias", vec![1], vec![0.0])],
            None,
        );
        let tensors = SafeTensors::deserialize(&nan).unwrap();
        assert!(Network::read(&tensors, "policy", 1, 1).unwrap_err().to_string().contains("not finite"));
    }
}
