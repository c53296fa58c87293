//! From the common options to an engine with its adapter.

use std::path::PathBuf;
use std::sync::Arc;

use wattle_engine::adapter::{self, Adapter};
use wattle_engine::model::Spec;
use wattle_engine::{ActiveFrom, Engine, EngineOptions, Gate, Lora};

use crate::common::Common;
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::shipped;

/// Which model and adapters a command works on: looked up, not loaded.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    /// The model's directory.
    pub model: PathBuf,
    /// Adapters and their scales, to be joined.
    pub adapters: Vec<(PathBuf, f32)>,
    /// From where on the adapter is active, unless `--lora-from` says it.
    from: ActiveFrom,
    /// The model is the shipped one because no other was asked for.
    pub shipped: bool,
}

impl Source {
    /// What the options name; without `--model` the shipped model, and then without `--adapter` its adapter.
    pub fn find(common: &Common) -> Result<Self> {
        let adapters: Vec<_> = common.adapter.iter().map(|text| scaled(text)).collect::<Result<_>>()?;
        if let Some(model) = &common.model {
            return Ok(Self { model: model.clone(), adapters, from: ActiveFrom::Adapter, shipped: false });
        }
        let model = shipped::model()?;
        if adapters.is_empty() {
            let adapters = vec![(shipped::adapter(&model), 1.0)];
            return Ok(Self { model, adapters, from: ActiveFrom::Generated, shipped: true });
        }
        Ok(Self { model, adapters, from: ActiveFrom::Adapter, shipped: true })
    }

    /// Names of the adapters' directories, joined with `+`; `None` without any.
    pub fn adapter_name(&self) -> Option<String> {
        let name = |dir: &PathBuf| {
            let name = dir.file_name().unwrap_or(dir.as_os_str());
            name.to_string_lossy().into_owned()
        };
        let names: Vec<_> = self.adapters.iter().map(|(dir, _)| name(dir)).collect();
        (!names.is_empty()).then(|| names.join("+"))
    }

    /// The adapters joined to one, for a model of this shape; there must be at least one.
    pub fn load_adapter(&self, spec: &Spec) -> Result<Adapter> {
        let load = |(dir, scale): &(PathBuf, f32)| Ok((Adapter::load(dir, spec)?, *scale));
        let loaded: Vec<_> = self.adapters.iter().map(load).collect::<Result<_>>()?;
        let parts: Vec<_> = loaded.iter().map(|(adapter, scale)| (adapter, *scale)).collect();
        Ok(adapter::join(&parts)?)
    }
}

/// An engine, and the adapter that the options name.
pub(crate) struct Session {
    /// The engine, with the adapter loaded.
    pub engine: Engine,
    /// The adapter, or [`Lora::BASE`].
    pub lora: Lora,
}

impl Session {
    /// Loads everything.
    pub fn open(source: &Source, common: &Common, options: EngineOptions) -> Result<Self> {
        let _progress = Progress::spinner(format!("loading {}", source.model.display()));
        let gate = common.gate.as_ref().map(Gate::load).transpose()?.map(Arc::new);
        let gated = gate.is_some();
        let mut engine = Engine::load(&source.model, EngineOptions { gate, ..options })?;
        let layers = common.lora_layers.mask(engine.spec().layers)?;
        if source.adapters.is_empty() {
            return Ok(Self { engine, lora: Lora::BASE });
        }
        let adapter = source.load_adapter(engine.spec())?;
        let from = common.lora_from.map_or(source.from, |from| from.0);
        let lora = Lora { layers, from, gated, ..Lora::new(engine.add_adapter(adapter)?) };
        Ok(Self { engine, lora })
    }
}

/// `DIR[:SCALE]`; a directory that exists as it is written goes first.
fn scaled(text: &str) -> Result<(PathBuf, f32)> {
    let whole = PathBuf::from(text);
    if whole.is_dir() {
        return Ok((whole, 1.0));
    }
    let Some((dir, scale)) = text.rsplit_once(':') else { return Ok((whole, 1.0)) };
    match scale.parse::<f32>() {
        Ok(scale) if scale.is_finite() => Ok((PathBuf::from(dir), scale)),
        _ => {
            let reason =
                format!("{text} is no directory, and {scale:?} is no scale; expected DIR or DIR:SCALE");
            Err(Error::value("--adapter", reason))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scale_is_what_follows_the_last_colon_unless_the_directory_exists() {
        let folder = tempfile::tempdir().unwrap();
        let odd = folder.path().join("a:2");
        std::fs::create_dir(&odd).unwrap();
        let text = odd.to_str().unwrap().to_owned();
        assert_eq!(scaled(&text).unwrap(), (odd.clone(), 1.0));
        assert_eq!(scaled(&format!("{text}:0.5")).unwrap(), (odd, 0.5));
        assert_eq!(scaled("nowhere:-2").unwrap(), (PathBuf::from("nowhere"), -2.0));
        for bad in ["nowhere:", "nowhere:x", "nowhere:inf"] {
            assert!(scaled(bad).unwrap_err().to_string().contains("--adapter"), "{bad}");
        }
    }
}
