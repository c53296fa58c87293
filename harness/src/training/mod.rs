//! Proximal policy optimization (Schulman et al. 2017) of layer policies: only in builds with the feature `training`.
//!
//! Gradients come from candle; everything that has to repeat bit for bit (random numbers, collection, Adam) is plain
//! arithmetic here.

mod checkpoint;
mod gradients;
mod parameters;
mod ppo;
mod rollout;
#[cfg(test)]
mod tests;

pub(crate) use checkpoint::serialize;
pub(crate) use ppo::{Diagnostics, Settings, Trainer};

use crate::error::Error;

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        Self::Failed(format!("training: {error}"))
    }
}
