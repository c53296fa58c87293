//! The options that every command knows.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use clap::ValueEnum;
use wattle_engine::model::{self, Model};
use wattle_engine::{ActiveFrom, BackendChoice, KvType};

use crate::error::Result;
use crate::layers::Layers;

/// Which model, with which adapters, on which backend, in which precision.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Common options")]
pub(crate) struct Common {
    /// Model directory in Hugging Face form [default: the shipped model `sprout`, with its adapter `reason`]
    #[arg(long, global = true, value_name = "DIR")]
    pub model: Option<PathBuf>,
    /// PEFT adapter directory; several are joined, each with its scale
    #[arg(long, global = true, value_name = "DIR[:SCALE]")]
    pub adapter: Vec<String>,
    /// What runs the model; `auto` is a real GPU if there is one, else the CPU
    #[arg(long, global = true, value_enum, default_value_t)]
    pub backend: Backend,
    /// How weights are kept
    #[arg(long, global = true, value_enum, default_value_t)]
    pub quant: Quant,
    /// Arithmetic; `exact` is f32 throughout [default: exact with `--quant none`, else fast]
    #[arg(long, global = true, value_enum)]
    pub precision: Option<Precision>,
    /// How keys and values are kept: `q8` are bytes with a scale per token and head [default: f32]
    #[arg(long, global = true, value_enum)]
    pub kv: Option<Kv>,
    /// Memory for keys and values at most, in bytes, or with K, M or G for powers of 1024: paths and requests that find no
    /// room wait for each other [default: as much as all that run at once may need]
    #[arg(long, global = true, value_name = "BYTES", value_parser = bytes)]
    pub kv_bytes: Option<u64>,
    /// Layers in which the adapter is active: `all`, `none`, or a list such as `0,2,5-7`, which also leaves out what
    /// lies outside the layers
    #[arg(long, global = true, value_name = "LAYERS", default_value = "all")]
    pub lora_layers: Layers,
    /// Where the adapter begins to be active: as the `adapter` says itself, with the `prompt`, with the first
    /// `generated` token, or at a position [default: adapter; generated for the shipped `reason`]
    #[arg(long, global = true, value_name = "adapter|prompt|generated|N")]
    pub lora_from: Option<LoraFrom>,
    /// Gates that decide on the device, layer by layer and token by token, whether the adapter is on (safetensors)
    #[arg(long, global = true, value_name = "FILE")]
    pub gate: Option<PathBuf>,
    /// CPU threads [default: one per core]
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
}

impl Common {
    /// The engine's options as far as they are common.
    pub fn engine_options(&self) -> wattle_engine::EngineOptions {
        wattle_engine::EngineOptions {
            backend: self.backend.into(),
            quant: self.quant.into(),
            precision: self.precision(),
            kv: self.kv.map(KvType::from).unwrap_or_default(),
            kv_bytes: self.kv_bytes,
            threads: self.threads.map(usize::from),
            tuning: tuning_file(),
            ..wattle_engine::EngineOptions::default()
        }
    }

    /// The model with its weights kept as `--quant` says.
    pub fn quantized(&self, model: Model) -> Result<Model> {
        match self.quant.into() {
            Some(quant) => Ok(model.quantized(quant)?),
            None => Ok(model),
        }
    }

    /// What activations are rounded to.
    fn precision(&self) -> wattle_engine::Precision {
        match (self.precision, self.quant) {
            (Some(Precision::Exact), _) | (None, Quant::None) => wattle_engine::Precision::Exact,
            (Some(Precision::Fast), _) | (None, _) => wattle_engine::Precision::Fast,
        }
    }

    /// Threads that the CPU backend uses.
    pub fn thread_count(&self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        self.threads.map_or_else(cores, usize::from)
    }
}

/// A number of bytes, as it is typed.
fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = match &text[digits.len()..] {
        "" => 1,
        "K" | "k" => 1 << 10,
        "M" | "m" => 1 << 20,
        "G" | "g" => 1 << 30,
        unit => return Err(format!("`{unit}` is no unit: expected K, M or G, or none for bytes")),
    };
    let number: u64 = digits.parse().map_err(|_| "expected a whole number, such as 512M".to_owned())?;
    number.checked_mul(unit).ok_or_else(|| "more bytes than can be counted".to_owned())
}

/// Where measured choices are kept: in the user's cache folder.
fn tuning_file() -> Option<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let caches = folder("XDG_CACHE_HOME").or_else(|| folder("HOME").map(|home| home.join(".cache")));
    caches.map(|caches| caches.join("wattle/tuning.json"))
}

/// Shows an option's value as it is typed.
pub(crate) struct Name<T>(pub T);

impl<T: ValueEnum> fmt::Display for Name<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.0.to_possible_value();
        f.write_str(value.as_ref().map_or("?", |value| value.get_name()))
    }
}

/// `--backend`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Backend {
    #[default]
    Auto,
    Cpu,
    Gpu,
}

impl From<Backend> for BackendChoice {
    fn from(backend: Backend) -> Self {
        match backend {
            Backend::Auto => Self::Auto,
            Backend::Cpu => Self::Cpu,
            Backend::Gpu => Self::Gpu,
        }
    }
}

/// `--quant`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Quant {
    #[default]
    None,
    #[value(name = "q8_0")]
    Q8_0,
    #[value(name = "q4_0")]
    Q4_0,
    #[value(name = "q4_1")]
    Q4_1,
    Int8,
    Int4,
}

impl From<Quant> for Option<model::Quant> {
    fn from(quant: Quant) -> Self {
        match quant {
            Quant::None => None,
            Quant::Q8_0 => Some(model::Quant::Q8_0),
            Quant::Q4_0 => Some(model::Quant::Q4_0),
            Quant::Q4_1 => Some(model::Quant::Q4_1),
            Quant::Int8 => Some(model::Quant::Int8),
            Quant::Int4 => Some(model::Quant::Int4),
        }
    }
}

/// `--precision`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Precision {
    Exact,
    Fast,
}

/// `--kv`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kv {
    F32,
    F16,
    Q8,
}

impl From<Kv> for KvType {
    fn from(kv: Kv) -> Self {
        match kv {
            Kv::F32 => Self::F32,
            Kv::F16 => Self::F16,
            Kv::Q8 => Self::Q8,
        }
    }
}

/// `--lora-from`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LoraFrom(pub ActiveFrom);

impl FromStr for LoraFrom {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(Self(match text {
            "adapter" => ActiveFrom::Adapter,
            "prompt" => ActiveFrom::Position(0),
            "generated" => ActiveFrom::Generated,
            position => ActiveFrom::Position(
                position.parse().map_err(|_| "expected adapter, prompt, generated, or a position")?,
            ),
        }))
    }
}
