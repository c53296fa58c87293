//! adapter_config.json: what of it matters here, and what is refused by name.
//!
//! Meanings are those of PEFT 0.21.2 (peft/tuners/lora/config.py); options that only say how factors were
//! initialized or trained are read over.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::fields::{Fields, Ordered, Strings, short};
use super::{ActivationRule, MAX_RANK};
use crate::{Error, Result};

/// More than any adapter_config.json: one that names every module of a large model has some 100 KiB.
const MAX_BYTES: u64 = 4 << 20;
/// More than any rank_pattern: EVA writes one entry per module, some 900 in the largest models.
const MAX_PATTERNS: usize = 4096;

/// The parts of adapter_config.json that decide where factors apply and how strongly.
#[derive(Debug)]
pub(super) struct Config {
    /// The file, for messages.
    pub path: PathBuf,
    /// `r`.
    pub rank: usize,
    /// `lora_alpha`.
    pub alpha: f64,
    /// The scale is alpha/√rank instead of alpha/rank.
    pub rslora: bool,
    /// `target_modules`: names, or a pattern of the full name; `None` stands for the family's default.
    pub targets: Option<Strings>,
    /// `exclude_modules`: the same; `None` also where it is empty.
    pub exclude: Option<Strings>,
    /// `layers_to_transform`; `None` also where it is empty.
    pub layers: Option<Vec<i64>>,
    /// `layers_pattern`; empty for any.
    pub layer_patterns: Vec<String>,
    /// `rank_pattern` in the file's order: the first match counts.
    pub rank_pattern: Vec<(String, usize)>,
    /// `alpha_pattern` in the file's order.
    pub alpha_pattern: Vec<(String, f64)>,
    /// From `alora_invocation_tokens`.
    pub rule: ActivationRule,
}

/// Options that change what an adapter computes, or that need more than factors, and what they stand for.
const REFUSED: [(&str, &str); 7] = [
    ("use_dora", "DoRA"),
    ("modules_to_save", "modules_to_save (modules trained in full)"),
    ("lora_bias", "bias training"),
    ("trainable_token_indices", "trained token embeddings"),
    ("layer_replication", "layer replication"),
    ("target_parameters", "LoRA on bare parameters"),
    ("use_qalora", "QA-LoRA"),
];

/// The same for options that are objects: an empty one stands for the variant with its defaults.
const REFUSED_OBJECTS: [(&str, &str); 3] =
    [("use_bdlora", "BD-LoRA"), ("arrow_config", "Arrow routing"), ("kasa_config", "KaSA")];

/// Options without influence on what a trained adapter computes: they are about the file, initialization,
/// training or other runtimes. VeLoRA changes only the backward pass, MonteCLoRA samples only in training;
/// `fan_in_fan_out` says how the base stores its weights, which the base's own loader knows.
const WITHOUT_INFLUENCE: [&str; 21] = [
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "enable_lora",
    "ensure_weight_tying",
    "eva_config",
    "fan_in_fan_out",
    "inference_mode",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "merge_weights",
    "monteclora_config",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
    "velora_config",
];

impl Config {
    /// Reads `path`, an adapter_config.json.
    ///
    /// # Errors
    /// [`Error::File`] when it is missing or not a JSON object, [`Error::Field`] for a field of a wrong type or
    /// value, or an option that is refused.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let mut text = String::new();
        let read = File::open(path).and_then(|file| file.take(MAX_BYTES + 1).read_to_string(&mut text));
        read.map_err(|e| Error::file(path, format!("{e}; expected a PEFT adapter's adapter_config.json")))?;
        if text.len() as u64 > MAX_BYTES {
            return Err(Error::file(
                path,
                format!("larger than {MAX_BYTES} bytes, which no adapter_config.json is"),
            ));
        }
        Self::parse(path, &text)
    }

    fn parse(path: &Path, text: &str) -> Result<Self> {
        let mut fields = Fields::parse(path, text)?;
        refuse(&mut fields)?;
        let targets = fields.take_strings("target_modules")?;
        let (layers, layer_patterns) = layers(&mut fields, matches!(targets, Some(Strings::One(_))))?;
        let (rank_pattern, alpha_pattern) = patterns(&mut fields, text)?;
        let r = fields.values.remove("r").unwrap_or(Value::from(8));
        let lora_alpha = fields.values.remove("lora_alpha").unwrap_or(Value::from(8));
        let config = Self {
            rank: rank(&fields, "r", &r)?,
            alpha: alpha(&fields, "lora_alpha", &lora_alpha)?,
            rslora: fields.take("use_rslora", "true or false")?.unwrap_or(false),
            targets,
            exclude: fields.take_strings("exclude_modules")?.filter(|m| !m.is_empty()),
            layers,
            layer_patterns,
            rank_pattern,
            alpha_pattern,
            rule: match fields.take::<Vec<u32>>("alora_invocation_tokens", "a list of token ids")? {
                Some(tokens) if !tokens.is_empty() => ActivationRule::AfterInvocation(tokens),
                _ => ActivationRule::Always,
            },
            path: path.to_path_buf(),
        };
        for name in fields.values.iter().filter(|(_, v)| !v.is_null()).map(|(name, _)| name) {
            tracing::warn!("{}: {name}: unknown option, ignored", path.display());
        }
        Ok(config)
    }
}

/// Answers, by name, everything that is not plain LoRA.
fn refuse(fields: &mut Fields) -> Result<()> {
    let path = fields.path;
    let refused =
        |name: &str, what: &str| Error::field(path, name, format!("{what} is not supported, plain LoRA is"));
    match fields.values.remove("peft_type") {
        Some(Value::String(kind)) if kind == "LORA" => {}
        Some(kind) => return Err(refused("peft_type", &short(&kind))),
        None => return Err(fields.wrong("peft_type", "missing", "\"LORA\"")),
    }
    match fields.values.remove("bias") {
        None | Some(Value::Null) => {}
        Some(bias) if bias == "none" => {}
        Some(bias) => return Err(refused("bias", &format!("bias training ({})", short(&bias)))),
    }
    for (name, what) in REFUSED {
        if fields.take_truth(name) {
            return Err(refused(name, what));
        }
    }
    for (name, what) in REFUSED_OBJECTS {
        if !matches!(fields.values.remove(name), None | Some(Value::Null | Value::Bool(false))) {
            return Err(refused(name, what));
        }
    }
    refuse_changed_base(fields)?;
    for name in WITHOUT_INFLUENCE {
        fields.values.remove(name);
    }
    Ok(())
}

/// Refuses initializations that PEFT repeats on loading, when it takes their product off the base weights
/// (measured for pissa and olora; corda and loftq cannot be loaded onto the plain base).
fn refuse_changed_base(fields: &mut Fields) -> Result<()> {
    let Some(Value::String(init)) = fields.values.remove("init_lora_weights") else { return Ok(()) };
    let init = init.to_lowercase();
    if init.starts_with("pissa") || ["olora", "corda", "loftq"].contains(&init.as_str()) {
        let found = format!("{init} is not supported because it changes the base's weights");
        let expected = "an adapter saved with PEFT's path_initial_model_for_weight_conversion, \
                        or a changed base and true here";
        return Err(fields.wrong("init_lora_weights", found, expected));
    }
    Ok(())
}

/// `layers_to_transform` and `layers_pattern`, which PEFT allows only with a list of targets.
fn layers(fields: &mut Fields, targets_are_a_pattern: bool) -> Result<(Option<Vec<i64>>, Vec<String>)> {
    let expected = "a layer's number, a list of them or null";
    let layers = match fields.values.get("layers_to_transform") {
        Some(Value::Number(_)) => fields.take("layers_to_transform", expected)?.map(|layer| vec![layer]),
        _ => fields.take::<Vec<i64>>("layers_to_transform", expected)?,
    };
    let patterns = match fields.take_strings("layers_pattern")?.filter(|p| !p.is_empty()) {
        Some(Strings::One(pattern)) => vec![pattern],
        Some(Strings::List(patterns)) => patterns,
        None => Vec::new(),
    };
    check_count(fields, "layers_pattern", patterns.len())?;
    if targets_are_a_pattern && layers.is_some() {
        return Err(fields.wrong("layers_to_transform", "set", "null where target_modules is a string"));
    }
    if !patterns.is_empty() && layers.is_none() {
        return Err(fields.wrong("layers_pattern", "set", "null where layers_to_transform is null"));
    }
    Ok((layers.filter(|l| !l.is_empty()), patterns))
}

type Patterns<T> = Vec<(String, T)>;

/// `rank_pattern` and `alpha_pattern`, from the text itself because the first match in it counts.
fn patterns(fields: &mut Fields, text: &str) -> Result<(Patterns<usize>, Patterns<f64>)> {
    for name in ["rank_pattern", "alpha_pattern"] {
        fields.take::<BTreeMap<String, Value>>(name, "an object from patterns to numbers")?;
    }
    #[derive(serde::Deserialize)]
    struct Both {
        rank_pattern: Option<Ordered>,
        alpha_pattern: Option<Ordered>,
    }
    let both: Both = serde_json::from_str(text).map_err(|e| Error::file(fields.path, e))?;
    Ok((
        read_all(fields, "rank_pattern", both.rank_pattern, rank)?,
        read_all(fields, "alpha_pattern", both.alpha_pattern, alpha)?,
    ))
}

fn read_all<T>(
    fields: &Fields,
    name: &str,
    entries: Option<Ordered>,
    read: impl Fn(&Fields, &str, &Value) -> Result<T>,
) -> Result<Patterns<T>> {
    let entries = entries.map_or(Vec::new(), |ordered| ordered.0);
    check_count(fields, name, entries.len())?;
    let entry = |(pattern, value): (String, Value)| {
        let value = read(fields, &format!("{name}.{pattern}"), &value)?;
        Ok((pattern, value))
    };
    entries.into_iter().map(entry).collect()
}

fn check_count(fields: &Fields, name: &str, count: usize) -> Result<()> {
    let refused = || fields.wrong(name, format!("{count} entries"), format!("at most {MAX_PATTERNS}"));
    if count > MAX_PATTERNS { Err(refused()) } else { Ok(()) }
}

fn rank(fields: &Fields, name: &str, value: &Value) -> Result<usize> {
    let rank = value.as_u64().and_then(|r| usize::try_from(r).ok()).filter(|r| (1..=MAX_RANK).contains(r));
    rank.ok_or_else(|| fields.wrong(name, short(value), format!("a rank from 1 to {MAX_RANK}")))
}

fn alpha(fields: &Fields, name: &str, value: &Value) -> Result<f64> {
    value.as_f64().ok_or_else(|| fields.wrong(name, short(value), "a number"))
}
