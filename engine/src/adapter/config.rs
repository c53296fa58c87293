//! adapter_config.json: what of it matters here, and what is refused by name.
//!
//! Meanings are those of PEFT 0.21.2 (peft/tuners/lora/config.py).

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::ordered::Ordered;
use super::{ActivationRule, MAX_RANK};
use crate::model::{Fields, read_bounded};
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
    /// `target_modules`; `None` stands for the family's default.
    pub targets: Option<Strings>,
    /// `exclude_modules`; `None` also where it is empty.
    pub exclude: Option<Strings>,
    /// `layers_to_transform`; `None` also where it is empty.
    pub layers: Option<Vec<i64>>,
    /// `layers_pattern`; empty for any.
    pub layer_patterns: Vec<String>,
    /// `rank_pattern` in the file's order: the first match counts.
    pub rank_pattern: Vec<(String, usize)>,
    /// `alpha_pattern` in the file's order.
    pub alpha_pattern: Vec<(String, f64)>,
    /// `ensure_weight_tying`.
    pub ties_vocabulary: bool,
    /// From `alora_invocation_tokens`.
    pub rule: ActivationRule,
}

/// How modules are named.
#[derive(Debug)]
pub(super) enum Strings {
    /// By a pattern of the full name.
    One(String),
    /// By full names or their ends.
    List(Vec<String>),
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

/// Other options that are known. Those that nothing here reads are about the file, initialization, training or other
/// runtimes: VeLoRA changes only the backward pass, MonteCLoRA samples only in training, and `fan_in_fan_out` says how
/// the base stores its weights, which the base's own loader knows.
#[rustfmt::skip] // one name a line would take a page
const KNOWN: [&str; 35] = [
    "alora_invocation_tokens", "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config",
    "enable_lora", "ensure_weight_tying", "eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode",
    "init_lora_weights", "layers_pattern", "layers_to_transform", "loftq_config", "lora_alpha", "lora_dropout",
    "lora_ga_config", "megatron_config", "megatron_core", "merge_weights", "monteclora_config", "peft_type",
    "peft_version", "qalora_group_size", "r", "rank_pattern", "revision", "runtime_config", "target_modules",
    "task_type", "use_rslora", "velora_config", "version",
];

impl Config {
    /// Reads `path`, an adapter_config.json.
    ///
    /// # Errors
    /// [`Error::File`] when it is missing or not a JSON object, [`Error::Field`] for a field of a wrong type or
    /// value, or an option that is refused.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let text = read_bounded(path, MAX_BYTES)?
            .ok_or_else(|| Error::file(path, "no such file; the directory of a PEFT adapter has one"))?;
        let fields = Fields::parse(path, &text)?;
        refuse(&fields)?;
        let targets = strings(&fields, "target_modules")?;
        let (rank_pattern, alpha_pattern) = patterns(&fields, path, &text)?;
        let (layers, layer_patterns) = layers(&fields, matches!(targets, Some(Strings::One(_))))?;
        Ok(Self {
            rank: fields.size("r", 1..=MAX_RANK)?.unwrap_or(8),
            alpha: fields.read("lora_alpha", "a number in the range of f32", number)?.unwrap_or(8.0),
            rslora: fields.flag("use_rslora")?.unwrap_or(false),
            targets,
            exclude: strings(&fields, "exclude_modules")?.filter(|m| !m.is_empty()),
            layers,
            layer_patterns,
            rank_pattern,
            alpha_pattern,
            ties_vocabulary: fields.flag("ensure_weight_tying")?.unwrap_or(false),
            rule: rule(&fields)?,
            path: path.to_path_buf(),
        })
    }
}

impl Strings {
    /// Whether Python would call it false.
    fn is_empty(&self) -> bool {
        match self {
            Self::One(text) => text.is_empty(),
            Self::List(list) => list.is_empty(),
        }
    }
}

/// Answers, by name, everything that is not plain LoRA, and warns of options that are not known.
fn refuse(fields: &Fields) -> Result<()> {
    let refused =
        |name: &str, what: &str| Err(fields.error(name, format!("{what} is not supported; plain LoRA is")));
    let text = |value: &Value| value.as_str().map(str::to_owned);
    match fields.read("peft_type", "\"LORA\"", text)? {
        Some(kind) if kind == "LORA" => {}
        Some(kind) => return refused("peft_type", &kind),
        None => return Err(fields.error("peft_type", "missing; expected \"LORA\"")),
    }
    match fields.read("bias", "\"none\"", text)? {
        Some(bias) if bias != "none" => return refused("bias", &format!("bias training ({bias})")),
        _ => {}
    }
    for name in fields.names() {
        let set = |is_set: fn(&Value) -> bool| fields.read(name, "", |value| Some(is_set(value)));
        if let Some((_, what)) = REFUSED.iter().find(|(refused, _)| *refused == name) {
            if set(truth)? == Some(true) {
                return refused(name, what);
            }
        } else if let Some((_, what)) = REFUSED_OBJECTS.iter().find(|(refused, _)| *refused == name) {
            if set(|value| *value != Value::Bool(false))? == Some(true) {
                return refused(name, what);
            }
        } else if !KNOWN.contains(&name) && !fields.is_null(name) {
            tracing::warn!("{}", fields.error(name, "unknown option, ignored"));
        }
    }
    refuse_changed_base(fields)
}

/// What Python's `bool` makes of a value.
fn truth(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(value) => value.as_f64() != Some(0.0),
        Value::String(value) => !value.is_empty(),
        Value::Array(value) => !value.is_empty(),
        Value::Object(value) => !value.is_empty(),
    }
}

/// Refuses initializations that PEFT repeats on loading when they take their product off the base's weights
/// (measured for pissa and olora; corda and loftq cannot be loaded onto the plain base).
fn refuse_changed_base(fields: &Fields) -> Result<()> {
    let name = "init_lora_weights";
    let init = fields.read(name, "", |value| Some(value.as_str().unwrap_or_default().to_lowercase()))?;
    match init {
        Some(init) if init.starts_with("pissa") || ["olora", "corda", "loftq"].contains(&init.as_str()) => {
            let reason = "changes the base's weights, which is not supported; expected an adapter that was saved with \
                          PEFT's path_initial_model_for_weight_conversion, or the changed base and true here";
            Err(fields.error(name, format!("{init} {reason}")))
        }
        _ => Ok(()),
    }
}

/// `layers_to_transform` and `layers_pattern`, which PEFT allows only with a list of targets.
fn layers(fields: &Fields, targets_are_a_pattern: bool) -> Result<(Option<Vec<i64>>, Vec<String>)> {
    let expected = "a layer's number, a list of them or null";
    let layers: Option<Vec<i64>> = fields.read("layers_to_transform", expected, |value| match value {
        Value::Array(list) => list.iter().map(Value::as_i64).collect(),
        one => one.as_i64().map(|layer| vec![layer]),
    })?;
    let patterns = match strings(fields, "layers_pattern")?.filter(|p| !p.is_empty()) {
        Some(Strings::One(pattern)) => vec![pattern],
        Some(Strings::List(patterns)) => patterns,
        None => Vec::new(),
    };
    check_count(fields, "layers_pattern", patterns.len())?;
    if targets_are_a_pattern && layers.is_some() {
        return Err(
            fields.error("layers_to_transform", "set; expected null where target_modules is a string")
        );
    }
    if !patterns.is_empty() && layers.is_none() {
        return Err(fields.error("layers_pattern", "set; expected null where layers_to_transform is null"));
    }
    Ok((layers.filter(|l| !l.is_empty()), patterns))
}

/// `alora_invocation_tokens`; PEFT takes an empty list for none.
fn rule(fields: &Fields) -> Result<ActivationRule> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let list = |value: &Value| value.as_array()?.iter().map(id).collect::<Option<Vec<_>>>();
    match fields.read("alora_invocation_tokens", "a list of token ids", list)? {
        Some(tokens) if !tokens.is_empty() => Ok(ActivationRule::AfterInvocation(tokens)),
        _ => Ok(ActivationRule::Always),
    }
}

fn strings(fields: &Fields, name: &str) -> Result<Option<Strings>> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    fields.read(name, "a string, a list of strings or null", |value| match value {
        Value::Array(list) => list.iter().map(text).collect::<Option<_>>().map(Strings::List),
        one => text(one).map(Strings::One),
    })
}

type Patterns<T> = Vec<(String, T)>;

/// A number that an f32 can be near.
fn number(value: &Value) -> Option<f64> {
    value.as_f64().filter(|&x| (x as f32).is_finite())
}

/// `rank_pattern` and `alpha_pattern`, from the text itself because the first match in it counts.
fn patterns(fields: &Fields, path: &Path, text: &[u8]) -> Result<(Patterns<usize>, Patterns<f64>)> {
    #[derive(serde::Deserialize)]
    struct Both {
        rank_pattern: Option<Ordered>,
        alpha_pattern: Option<Ordered>,
    }
    for name in ["rank_pattern", "alpha_pattern"] {
        fields.read(name, "an object from patterns to numbers", |value| value.is_object().then_some(()))?;
    }
    let both: Both = serde_json::from_slice(text).map_err(|e| Error::file(path, e))?;
    let rank =
        |value: &Value| usize::try_from(value.as_u64()?).ok().filter(|rank| (1..=MAX_RANK).contains(rank));
    let ranks = numbers(fields, "rank_pattern", both.rank_pattern, rank)?;
    let alphas = numbers(fields, "alpha_pattern", both.alpha_pattern, number)?;
    Ok((ranks, alphas))
}

fn numbers<T>(
    fields: &Fields,
    name: &str,
    entries: Option<Ordered>,
    number: impl Fn(&Value) -> Option<T>,
) -> Result<Patterns<T>> {
    let entries = entries.map_or(Vec::new(), |entries| entries.0);
    check_count(fields, name, entries.len())?;
    let entry = |(pattern, value): (String, Value)| match number(&value) {
        Some(number) => Ok((pattern, number)),
        None => {
            let found: String = value.to_string().chars().take(60).collect();
            let expected = format!("a number; ranks from 1 to {MAX_RANK}");
            Err(fields.error(name, format!("{found} for {pattern:?}; expected {expected}")))
        }
    };
    entries.into_iter().map(entry).collect()
}

fn check_count(fields: &Fields, name: &str, count: usize) -> Result<()> {
    if count > MAX_PATTERNS {
        return Err(fields.error(name, format!("{count} entries; expected at most {MAX_PATTERNS}")));
    }
    Ok(())
}
