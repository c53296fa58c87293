//! Adapters: unmodified PEFT directories → [`Factors`].

mod factors;

pub use factors::{Factors, Pair, Place, Target};

use std::sync::Arc;

/// A loaded adapter.
#[derive(Clone, Debug)]
pub struct Adapter {
    /// Directory name.
    pub name: String,
    /// Factors.
    pub factors: Arc<Factors>,
    /// When active.
    pub rule: ActivationRule,
}

/// When an adapter is active.
#[derive(Clone, Debug, PartialEq)]
pub enum ActivationRule {
    /// Everywhere.
    Always,
    /// From the last match on.
    AfterInvocation(Vec<u32>),
}

impl ActivationRule {
    /// First active position.
    pub fn first_active(&self, _ids: &[u32]) -> Option<usize> {
        None
    }
}

impl Adapter {
    /// Loads a PEFT directory.
    pub fn load(dir: &std::path::Path, _spec: &crate::model::Spec) -> crate::Result<Self> {
        Err(crate::Error::file(dir, "not there yet"))
    }

    /// Whether some projection outside the layers has factors.
    pub fn has_factors_outside_layers(&self) -> bool {
        self.factors.pairs.keys().any(|place| place.layer == wattle_shaders::OUTSIDE_LAYERS)
    }

    /// Highest rank.
    pub fn rank(&self) -> usize {
        0
    }
}

/// Joins adapters.
pub fn join(_adapters: &[(&Adapter, f32)]) -> crate::Result<Adapter> {
    Err(crate::Error::value("adapters", "not there yet"))
}
