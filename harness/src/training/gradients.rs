//! The loss of a minibatch and its gradients, by candle.

use candle_core::{D, Device, Tensor, Var};
use candle_nn::{Linear, Module, ops};

use super::parameters::{PER_NETWORK, Parameters};
use super::ppo::Settings;
use super::rollout::Transition;
use crate::error::Result;

/// Added to the logits of what may not be chosen.
const FORBIDDEN: f32 = -1e9;

/// A step with what became of it.
pub(crate) struct Sample<'a> {
    pub step: &'a Transition,
    pub advantage: f32,
    /// What the value should have been.
    pub target: f32,
}

/// What a minibatch says.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Losses {
    pub total: f32,
    pub policy: f32,
    pub value: f32,
    pub entropy: f32,
    /// E\[(r − 1) − log r\] (Schulman 2020).
    pub approx_kl: f32,
    /// Of all ratios, how many lie outside 1 ± clip.
    pub clip_fraction: f32,
}

/// The losses and the gradient of the total for every parameter. Advantages are taken as they are.
pub(crate) fn gradients(
    parameters: &Parameters,
    components: &[usize],
    batch: &[Sample],
    settings: &Settings,
) -> Result<(Losses, Vec<Vec<f32>>)> {
    let device = Device::Cpu;
    let variable = |p: &super::parameters::Parameter| {
        Var::from_tensor(&Tensor::from_slice(&p.values, p.shape.as_slice(), &device)?)
    };
    let variables: Vec<Var> = parameters.0.iter().map(variable).collect::<candle_core::Result<_>>()?;
    let (policy, value) = variables.split_at(PER_NETWORK);
    let rows = batch.len();
    let column = |values: Vec<f32>| Tensor::from_vec(values, rows, &device);
    let features: Vec<f32> = batch.iter().flat_map(|s| s.step.features.iter().copied()).collect();
    let width = features.len() / rows.max(1);
    let features = Tensor::from_vec(features, (rows, width), &device)?;

    let (log_probability, entropy) = chosen(&forward(policy, &features)?, components, batch, &device)?;
    let before = column(batch.iter().map(|s| s.step.log_probability).collect())?;
    let log_ratio = (log_probability - before)?;
    let ratio = log_ratio.exp()?;
    let advantage = column(batch.iter().map(|s| s.advantage).collect())?;
    let clip = settings.clip as f64;
    let clipped = ratio.clamp(1.0 - clip, 1.0 + clip)?;
    let policy_loss = (&ratio * &advantage)?.minimum(&(clipped * &advantage)?)?.mean_all()?.neg()?;

    let target = column(batch.iter().map(|s| s.target).collect())?;
    let value_loss = (forward(value, &features)?.flatten_all()? - target)?.sqr()?.mean_all()?;
    let entropy = entropy.mean_all()?;
    let weighted_value = (&value_loss * f64::from(settings.value_weight))?;
    let total = ((&policy_loss + weighted_value)? - (&entropy * f64::from(settings.entropy_weight))?)?;

    let store = total.backward()?;
    let gradient = |variable: &Var| -> Result<Vec<f32>> {
        Ok(match store.get(variable) {
            Some(gradient) => gradient.flatten_all()?.to_vec1()?,
            None => vec![0.0; variable.elem_count()],
        })
    };
    let gradients = variables.iter().map(gradient).collect::<Result<_>>()?;
    let ratios: Vec<f32> = ratio.to_vec1()?;
    let logs: Vec<f32> = log_ratio.to_vec1()?;
    let mean = |values: &mut dyn Iterator<Item = f32>| values.sum::<f32>() / rows.max(1) as f32;
    let losses = Losses {
        total: total.to_scalar()?,
        policy: policy_loss.to_scalar()?,
        value: value_loss.to_scalar()?,
        entropy: entropy.to_scalar()?,
        approx_kl: mean(&mut ratios.iter().zip(&logs).map(|(ratio, log)| ratio - 1.0 - log)),
        clip_fraction: mean(&mut ratios.iter().map(|r| f32::from((r - 1.0).abs() > settings.clip))),
    };
    Ok((losses, gradients))
}

/// Layers with tanh between them: \[rows, features\] → \[rows, outputs\].
fn forward(variables: &[Var], features: &Tensor) -> candle_core::Result<Tensor> {
    let mut x = features.clone();
    for (index, pair) in variables.chunks(2).enumerate() {
        let linear = Linear::new(pair[0].as_tensor().clone(), Some(pair[1].as_tensor().clone()));
        x = linear.forward(&x)?;
        if 2 * (index + 1) < variables.len() {
            x = x.tanh()?;
        }
    }
    Ok(x)
}

/// Log-probability of each row's action and entropy of its distribution, summed over components.
fn chosen(
    logits: &Tensor,
    components: &[usize],
    batch: &[Sample],
    device: &Device,
) -> candle_core::Result<(Tensor, Tensor)> {
    let rows = batch.len();
    let forbidden = |&allowed: &bool| if allowed { 0.0 } else { FORBIDDEN };
    let mask: Vec<f32> = batch.iter().flat_map(|s| s.step.mask.iter().map(forbidden)).collect();
    let logits = (logits + Tensor::from_vec(mask, logits.shape(), device)?)?;
    let zero = Tensor::zeros(rows, candle_core::DType::F32, device)?;
    let (mut log_probability, mut entropy) = (zero.clone(), zero);
    let mut start = 0;
    for (index, &size) in components.iter().enumerate() {
        let logs = ops::log_softmax(&logits.narrow(D::Minus1, start, size)?, D::Minus1)?;
        let action: Vec<u32> = batch.iter().map(|s| s.step.action[index] as u32).collect();
        let action = Tensor::from_vec(action, (rows, 1), device)?;
        log_probability = (log_probability + logs.gather(&action, D::Minus1)?.squeeze(D::Minus1)?)?;
        entropy = (entropy - (logs.exp()? * &logs)?.sum(D::Minus1)?)?;
        start += size;
    }
    Ok((log_probability, entropy))
}
