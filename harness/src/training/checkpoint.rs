//! A training's state in a safetensors file.

use std::collections::HashMap;
use std::path::Path;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use wattle_policy::Random;

use super::parameters::{Adam, Parameter, Parameters};
use super::ppo::State;
use crate::error::{Error, Result};
use crate::files::read as read_file;

/// The longest checkpoint that is read \[bytes\].
const MAX_LENGTH: u64 = 256 << 20;
/// Prefixes of the two moments.
const MOMENTS: [&str; 2] = ["adam.first.", "adam.second."];

/// F32 tensors and metadata as a safetensors file has them.
pub(crate) fn serialize(
    tensors: &[(String, &[usize], &[f32])],
    metadata: HashMap<String, String>,
) -> Result<Vec<u8>> {
    let bytes: Vec<Vec<u8>> =
        tensors.iter().map(|(_, _, values)| values.iter().flat_map(|v| v.to_le_bytes()).collect()).collect();
    let view = |((name, shape, _), bytes): (&'_ (String, &[usize], &[f32]), _)| {
        Ok((name.clone(), TensorView::new(Dtype::F32, shape.to_vec(), bytes)?))
    };
    let views: std::result::Result<Vec<_>, safetensors::SafeTensorError> =
        tensors.iter().zip(bytes.iter().map(Vec::as_slice)).map(view).collect();
    let data = views.and_then(|views| safetensors::serialize(views, Some(metadata)));
    data.map_err(|error| Error::Failed(format!("training: {error}")))
}

/// Writes a checkpoint.
pub(super) fn write(file: &Path, state: &State) -> Result<()> {
    let mut tensors: Vec<(String, &[usize], &[f32])> = Vec::new();
    for (index, parameter) in state.parameters.0.iter().enumerate() {
        let Parameter { name, shape, values } = parameter;
        tensors.push((name.clone(), shape, values));
        for (prefix, moments) in MOMENTS.iter().zip(&state.adam.moments) {
            tensors.push((format!("{prefix}{name}"), shape, &moments[index]));
        }
    }
    let numbers = [("steps", state.steps), ("random", state.random.0), ("updates", state.adam.updates)];
    let metadata = numbers.map(|(name, value)| (name.to_owned(), value.to_string()));
    let data = serialize(&tensors, HashMap::from(metadata))?;
    std::fs::write(file, data).map_err(|error| Error::file(file, error))
}

/// Reads a checkpoint of a training with parameters like these.
pub(super) fn read(file: &Path, like: &Parameters) -> Result<State> {
    let data = read_file(file, MAX_LENGTH)?;
    let wrong = |reason: String| Error::file(file, reason);
    let tensors = SafeTensors::deserialize(&data).map_err(|error| wrong(error.to_string()))?;
    let (_, header) = SafeTensors::read_metadata(&data).map_err(|error| wrong(error.to_string()))?;
    let number = |name: &str| -> Result<u64> {
        let text =
            header.metadata().as_ref().and_then(|map| map.get(name)).and_then(|text| text.parse().ok());
        text.ok_or_else(|| wrong(format!("its metadata has no {name}: it is no checkpoint")))
    };
    let values = |name: &str, shape: &[usize]| -> Result<Vec<f32>> {
        let tensor = tensors.tensor(name).map_err(|error| wrong(error.to_string()))?;
        if tensor.dtype() != Dtype::F32 || tensor.shape() != shape {
            return Err(wrong(format!("{name} is not F32 {shape:?}: it belongs to another training")));
        }
        Ok(tensor.data().as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)).collect())
    };
    let mut parameters = like.clone();
    let mut adam = Adam { updates: number("updates")?, ..Adam::new(like) };
    for (index, parameter) in parameters.0.iter_mut().enumerate() {
        parameter.values = values(&parameter.name, &parameter.shape)?;
        for (prefix, moments) in MOMENTS.iter().zip(&mut adam.moments) {
            moments[index] = values(&format!("{prefix}{}", parameter.name), &parameter.shape)?;
        }
    }
    Ok(State { parameters, adam, random: Random(number("random")?), steps: number("steps")? })
}
