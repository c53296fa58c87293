//! Adapters: unmodified PEFT directories → [`Factors`].

mod config;
mod factors;
mod join;
mod load;
mod modules;
mod ordered;
mod residency;
mod rules;
#[cfg(test)]
mod tests;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::sync::Arc;

pub use factors::{Factors, Pair, Place, Target};
pub use join::join;
pub use modules::projections;
pub(crate) use residency::Residency;
pub use residency::ResidencyCounts;

use crate::Result;
use crate::model::Spec;

/// The highest rank of a module's factors that is accepted.
pub const MAX_RANK: usize = 4096;

/// An adapter, loaded for a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapter {
    /// The name of its directory (joined with `+` for several adapters).
    pub name: String,
    /// Where it applies, and its factors there.
    pub factors: Arc<Factors>,
    /// On which tokens it is active.
    pub rule: ActivationRule,
}

/// On which tokens of a sequence an adapter is active.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ActivationRule {
    /// On all.
    Always,
    /// From the first token of the last occurrence of these tokens in the prompt on (activated LoRA, Greenewald et al.
    /// 2025); on none when the prompt does not have them.
    AfterInvocation(Vec<u32>),
}

impl Adapter {
    /// Loads the PEFT adapter in `dir` for the model that `spec` describes.
    ///
    /// Factors of modules that the config does not target, and of the vision parts of a multimodal model, are ignored
    /// with a warning.
    ///
    /// # Errors
    /// [`Error::File`](crate::Error::File) and [`Error::Field`](crate::Error::Field), which name the file and the
    /// tensor or option: for files that are missing or damaged, options that are not plain LoRA, factors that do not
    /// fit the model or the config.
    pub fn load(dir: &Path, spec: &Spec) -> Result<Self> {
        let (factors, rule) = load::load(dir, spec)?;
        Ok(Self { name: directory_name(dir), factors: Arc::new(factors), rule })
    }

    /// The highest rank of its places.
    pub fn rank(&self) -> usize {
        self.factors.pairs().values().map(|pair| pair.rank).max().unwrap_or(0)
    }

    /// Whether some projection outside the layers (the head, say) has factors.
    pub fn has_factors_outside_layers(&self) -> bool {
        self.factors.pairs().keys().any(|place| place.layer == wattle_shaders::OUTSIDE_LAYERS)
    }

    /// A hash of what the adapter does, whatever its name: equal for equal places, factors and rule. It reads all
    /// factors, and is for use within one process.
    pub fn content_id(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.rule.hash(&mut hasher);
        for (place, pair) in self.factors.pairs() {
            place.hash(&mut hasher);
            [pair.rank, pair.cols, pair.rows].hash(&mut hasher);
            hasher.write(bytemuck::cast_slice(&pair.a));
            hasher.write(bytemuck::cast_slice(&pair.b));
        }
        hasher.finish()
    }
}

impl ActivationRule {
    /// The first position of the prompt `ids` on which the adapter is active; from there on it stays so. `None`: it is
    /// active neither in the prompt nor in what is generated after it.
    pub fn first_active(&self, ids: &[u32]) -> Option<usize> {
        match self {
            Self::AfterInvocation(tokens) if !tokens.is_empty() => {
                ids.windows(tokens.len()).rposition(|window| window == tokens)
            }
            _ => Some(0),
        }
    }
}

/// The last part of a directory's path, also for `.`.
fn directory_name(dir: &Path) -> String {
    let full = dir.canonicalize();
    let full = full.as_deref().unwrap_or(dir);
    full.file_name().unwrap_or(full.as_os_str()).to_string_lossy().into_owned()
}
