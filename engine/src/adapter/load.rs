//! A PEFT directory → [`Factors`].

use std::collections::BTreeMap;
use std::path::Path;

use super::config::Config;
use super::modules::{self, Linear, Module};
use super::rules::Rules;
use super::{ActivationRule, Factors, Pair};
use crate::model::{Spec, TensorFile, to_f32};
use crate::{Error, Result};

/// Factors and activation rule of the adapter in `dir`.
pub(super) fn load(dir: &Path, spec: &Spec) -> Result<(Factors, ActivationRule)> {
    let config = Config::read(&dir.join("adapter_config.json"))?;
    let rules = Rules::new(&config, spec.family)?;
    let file = open(dir)?;
    let mut loader = Loader { file: &file, rules: &rules, spec, ignored: BTreeMap::new() };
    let mut factors = Factors::default();
    for (module, keys) in loader.modules()? {
        if let Some(linear) = loader.find(module)? {
            loader.add(module, &keys, &linear, &mut factors)?;
        }
    }
    loader.warn();
    if factors.pairs().is_empty() {
        let reason = "no factors for a module that adapter_config.json targets and the model has; \
                      expected names like base_model.model.<module>.lora_A.weight";
        return Err(Error::file(file.path(), reason));
    }
    Ok((factors, config.rule))
}

fn open(dir: &Path) -> Result<TensorFile> {
    let path = dir.join("adapter_model.safetensors");
    let pickle = dir.join("adapter_model.bin");
    if !path.exists() && pickle.exists() {
        let reason = "a pickle, which can run code when read; only safetensors are accepted. Convert it once with: \
                      python -c \"import torch; from safetensors.torch import save_file; \
                      save_file(torch.load('adapter_model.bin', map_location='cpu', weights_only=True), \
                      'adapter_model.safetensors')\"";
        return Err(Error::file(pickle, reason));
    }
    TensorFile::open(&path)
}

/// The names of a module's tensors in the file.
#[derive(Default)]
struct Keys<'a> {
    a: Option<&'a str>,
    b: Option<&'a str>,
}

/// What is needed to place and read factors.
struct Loader<'a> {
    file: &'a TensorFile,
    rules: &'a Rules,
    spec: &'a Spec,
    /// Names of modules and tensors that were ignored, by the reason.
    ignored: BTreeMap<&'static str, Vec<&'a str>>,
}

impl<'a> Loader<'a> {
    fn wrong(&self, name: &str, reason: impl ToString) -> Error {
        Error::field(self.file.path(), name, reason)
    }

    fn ignore(&mut self, name: &'a str, reason: &'static str) {
        self.ignored.entry(reason).or_default().push(name);
    }

    fn warn(&self) {
        for (reason, names) in &self.ignored {
            let (path, count, first) = (self.file.path().display(), names.len(), names.first());
            tracing::warn!("{path}: {count} ignored, {reason}: {}, …", first.unwrap_or(&""));
        }
    }

    /// The file's factors, by the name of their module.
    fn modules(&mut self) -> Result<BTreeMap<&'a str, Keys<'a>>> {
        let mut modules: BTreeMap<&str, Keys> = BTreeMap::new();
        for key in self.file.names() {
            let name = key.strip_prefix("base_model.model.").unwrap_or(key);
            let (module, tail) = name.rsplit_once(".lora_").unwrap_or((name, ""));
            let refused =
                |what: &str| Err(self.wrong(key, format!("{what} is not supported; plain LoRA is")));
            let half = match tail.split('.').collect::<Vec<_>>()[..] {
                _ if key.ends_with(".bias") => return refused("bias training"),
                _ if key.contains(".modules_to_save.") => return refused("modules_to_save"),
                ["magnitude_vector", ..] => return refused("DoRA"),
                ["diag", ..] => return refused("KaSA"),
                // Some writers keep the adapter's name between lora_A and weight, or behind lora_embedding_A.
                ["A", "weight"] | ["A", _, "weight"] | ["embedding_A"] | ["embedding_A", _] => {
                    &mut modules.entry(module).or_default().a
                }
                ["B", "weight"] | ["B", _, "weight"] | ["embedding_B"] | ["embedding_B", _] => {
                    &mut modules.entry(module).or_default().b
                }
                _ => {
                    self.check_other(key)?;
                    continue;
                }
            };
            if let Some(other) = half.replace(key) {
                return Err(self.wrong(key, format!("the same factor as {other}, expected one of them")));
            }
        }
        Ok(modules)
    }

    /// Looks at a tensor that is not a factor. PEFT saves the base's embedding or head beside the factors where it is
    /// a target or was resized; resized, it does not belong to this model.
    fn check_other(&mut self, key: &'a str) -> Result<()> {
        let module = key.strip_suffix(".weight").unwrap_or(key);
        let module = module.strip_suffix(".base_layer").unwrap_or(module);
        if !["embed_tokens", "wte", "lm_head"].iter().any(|end| module.ends_with(end)) {
            self.ignore(key, "no factor of LoRA");
            return Ok(());
        }
        let expected = [self.spec.vocab, self.spec.embed_width];
        let found = self.file.shape(key).unwrap_or_default();
        if found != expected {
            let reason =
                format!("shape {found:?}, expected {expected:?} or none: made for another vocabulary");
            return Err(self.wrong(key, reason));
        }
        Ok(())
    }

    /// The module in the model; `None` where its factors are to be ignored, as by PEFT.
    fn find(&mut self, module: &'a str) -> Result<Option<Linear>> {
        let found = modules::find(module, self.spec);
        if found == Module::NotForText {
            self.ignore(module, "text does not pass through it");
            return Ok(None);
        }
        let vocabulary = matches!(&found, Module::Linear(linear) if linear.is_vocabulary());
        if !self.rules.target(module, vocabulary)? {
            self.ignore(module, "not a target of adapter_config.json");
            return Ok(None);
        }
        let (layers, family) = (self.spec.layers, self.spec.family);
        match found {
            Module::Linear(linear) => Ok(Some(linear)),
            Module::NoSuchLayer => {
                let reason = format!("the model has {layers} layers: made for another model");
                Err(self.wrong(module, reason))
            }
            _ if module.ends_with("wpe") || module.ends_with("embed_positions") => {
                Err(self.wrong(module, "LoRA on a table of positions is not supported"))
            }
            _ => Err(self.wrong(module, format!("{family:?} has no such module: made for another model"))),
        }
    }

    /// Adds the factors of a module: A is \[rank, cols\], B \[rows, rank\].
    fn add(&self, module: &str, keys: &Keys, linear: &Linear, factors: &mut Factors) -> Result<()> {
        let (a, b) = match (keys.a, keys.b) {
            (Some(a), Some(b)) => (a, b),
            (None, _) => return Err(self.wrong(module, "lora_B without lora_A, expected both")),
            (_, None) => return Err(self.wrong(module, "lora_A without lora_B, expected both")),
        };
        let (rank, cols) = (self.rules.rank(module)?, linear.cols);
        let scale = self.rules.scale(module)?;
        let a = self.values(a, [rank, cols], rank)?;
        let b = self.values(b, [linear.rows(), rank], rank)?;
        let mut b = b.iter().map(|&value| (f64::from(value) * scale) as f32);
        for &(place, rows) in &linear.parts {
            let part = Pair { rank, cols, rows, a: a.clone(), b: b.by_ref().take(rows * rank).collect() };
            if factors.pairs_mut().insert(place, part).is_some() {
                return Err(
                    self.wrong(module, format!("a second pair of factors for {place:?}, expected one"))
                );
            }
        }
        Ok(())
    }

    fn values(&self, key: &str, expected: [usize; 2], rank: usize) -> Result<Vec<f32>> {
        let found = self.file.shape(key).unwrap_or_default();
        if found != expected {
            let reason =
                format!("shape {found:?}, expected {expected:?} (rank {rank} by adapter_config.json)");
            return Err(self.wrong(key, reason));
        }
        let (dtype, data) = self.file.tensor(key, &expected)?;
        Ok(to_f32(data.as_ref(), dtype))
    }
}
