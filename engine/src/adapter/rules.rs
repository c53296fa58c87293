//! Which modules a config targets, with which rank and scale: PEFT's matching (peft/tuners/tuners_utils.py
//! `check_target_module_exists`, peft/utils/other.py `get_pattern_key`).

use std::path::PathBuf;

use fancy_regex::{Regex, RegexBuilder};

use super::config::{Config, Strings};
use crate::model::Family;
use crate::{Error, Result};

/// More than any pattern of a config, which at most lists the modules of a model.
const MAX_PATTERN_BYTES: usize = 16 << 10;
/// Steps for one match of a pattern with look-around; a usual one takes some hundred.
const MAX_STEPS: usize = 100_000;
/// Bytes of a compiled pattern.
const MAX_COMPILED_BYTES: usize = 1 << 20;

/// The matching rules of one adapter.
pub(super) struct Rules {
    targets: Names,
    exclude: Option<Names>,
    layers: Option<(Vec<i64>, Vec<Pattern>)>,
    ranks: Vec<(Pattern, usize)>,
    alphas: Vec<(Pattern, f64)>,
    rank: usize,
    alpha: f64,
    rslora: bool,
    /// Embedding and head are adapted together, whichever is targeted (`ensure_weight_tying`).
    ties_vocabulary: bool,
}

impl Rules {
    /// The rules of `config` for a model of `family`.
    ///
    /// # Errors
    /// [`Error::Field`] for a pattern that is not a regular expression, and for absent target_modules where PEFT has no
    /// default.
    pub(super) fn new(config: &Config, family: Family) -> Result<Self> {
        let names = |field, strings: &Strings| match strings {
            Strings::List(names) => Ok(Names::List(names.clone())),
            Strings::One(text) => {
                Pattern::new(config, field, text, &format!(r"\A(?:{text})\z")).map(Names::Full)
            }
        };
        let targets = match &config.targets {
            None => default_targets(config, family)?,
            Some(Strings::One(word)) if word.to_lowercase() == "all-linear" => Names::AllLinear,
            Some(targets) => names("target_modules", targets)?,
        };
        // As Python's format string puts it: the pattern may itself begin with ^.
        let end_of_name =
            |field, text: &str| Pattern::new(config, field, text, &format!(r"\A(.*\.)?({text})$"));
        let ranks =
            config.rank_pattern.iter().map(|(text, rank)| Ok((end_of_name("rank_pattern", text)?, *rank)));
        let alphas =
            config.alpha_pattern.iter().map(|(text, a)| Ok((end_of_name("alpha_pattern", text)?, *a)));
        Ok(Self {
            targets,
            exclude: config.exclude.as_ref().map(|e| names("exclude_modules", e)).transpose()?,
            layers: config
                .layers
                .clone()
                .map(|l| Ok::<_, Error>((l, layer_patterns(config)?)))
                .transpose()?,
            ranks: ranks.collect::<Result<_>>()?,
            alphas: alphas.collect::<Result<_>>()?,
            rank: config.rank,
            alpha: config.alpha,
            rslora: config.rslora,
            ties_vocabulary: config.ties_vocabulary,
        })
    }

    /// Whether the config targets the module `name`.
    ///
    /// # Errors
    /// [`Error::Field`] for a pattern that takes too many steps.
    pub(super) fn target(&self, name: &str, is_vocabulary: bool) -> Result<bool> {
        // Of a tied pair PEFT adapts both and names one; of others there are no factors.
        if is_vocabulary && self.ties_vocabulary {
            return Ok(true);
        }
        if let Some(exclude) = &self.exclude
            && exclude.matches(name, is_vocabulary)?
        {
            return Ok(false);
        }
        // PEFT looks at the layer only where the end of the name matched, not where all of it did.
        let by_full_name = matches!(&self.targets, Names::List(names) if names.iter().any(|n| n == name));
        Ok(by_full_name || self.targets.matches(name, is_vocabulary)? && self.layer_matches(name)?)
    }

    /// Rank of the module `name`: the first entry of rank_pattern that matches the end of it, else r.
    pub(super) fn rank(&self, name: &str) -> Result<usize> {
        first_match(&self.ranks, name, self.rank)
    }

    /// What B·A is multiplied by in the module `name`: α/r, or α/√r (Kalajdzievski 2023) under use_rslora.
    pub(super) fn scale(&self, name: &str) -> Result<f64> {
        let rank = self.rank(name)? as f64;
        let alpha = first_match(&self.alphas, name, self.alpha)?;
        Ok(alpha / if self.rslora { rank.sqrt() } else { rank })
    }

    fn layer_matches(&self, name: &str) -> Result<bool> {
        let Some((layers, patterns)) = &self.layers else { return Ok(true) };
        for pattern in patterns {
            let Some(found) = pattern.captures(name)? else { continue };
            let index = found.name("idx").and_then(|digits| digits.as_str().parse().ok());
            return Ok(index.is_some_and(|index: i64| layers.contains(&index)));
        }
        Ok(false)
    }
}

/// PEFT's defaults (peft/utils/constants.py, TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING).
fn default_targets(config: &Config, family: Family) -> Result<Names> {
    let names: &[&str] = match family {
        Family::Gpt2 => &["c_attn"],
        Family::Opt | Family::Llama | Family::Mistral | Family::Qwen2 | Family::Qwen3 => {
            &["q_proj", "v_proj"]
        }
        Family::Phi3 => {
            let reason = format!("null, but PEFT has no default for {family:?}; expected names or a pattern");
            return Err(Error::field(&config.path, "target_modules", reason));
        }
    };
    Ok(Names::List(names.iter().map(ToString::to_string).collect()))
}

/// Patterns whose group `idx` is a module's layer: the first number after the pattern's name, or after any name.
fn layer_patterns(config: &Config) -> Result<Vec<Pattern>> {
    let new = |text: &str, full: &str| Pattern::new(config, "layers_pattern", text, full);
    if config.layer_patterns.is_empty() {
        return Ok(vec![new("", r"\A.*?\.[^.]*\.(?P<idx>\d+)\.")?]);
    }
    let after = |text: &String| new(text, &format!(r"\A(?:(?:^|.*?\.){text}\.(?P<idx>\d+)\.)"));
    config.layer_patterns.iter().map(after).collect()
}

fn first_match<T: Copy>(patterns: &[(Pattern, T)], name: &str, otherwise: T) -> Result<T> {
    for (pattern, value) in patterns {
        if pattern.captures(name)?.is_some() {
            return Ok(*value);
        }
    }
    Ok(otherwise)
}

enum Names {
    /// Every projection but the head; not the embedding.
    AllLinear,
    /// Full names, or the ends of names from a dot on.
    List(Vec<String>),
    /// A pattern of the full name.
    Full(Pattern),
}

impl Names {
    fn matches(&self, name: &str, is_vocabulary: bool) -> Result<bool> {
        match self {
            Self::AllLinear => Ok(!is_vocabulary),
            Self::List(ends) => Ok(ends.iter().any(|end| {
                name.strip_suffix(end.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            })),
            Self::Full(pattern) => Ok(pattern.captures(name)?.is_some()),
        }
    }
}

/// A compiled pattern and where it came from.
struct Pattern {
    regex: Regex,
    path: PathBuf,
    field: &'static str,
}

impl Pattern {
    /// Compiles `full`, made from `text` of the config's `field`. Python's look-around and back-references are known.
    fn new(config: &Config, field: &'static str, text: &str, full: &str) -> Result<Self> {
        let wrong = |reason: String| {
            let shown: String = text.chars().take(120).collect();
            Error::field(
                &config.path,
                field,
                format!("{reason} in {shown:?}; expected a regular expression of usual size"),
            )
        };
        if text.len() > MAX_PATTERN_BYTES {
            return Err(wrong(format!("{} bytes (at most {MAX_PATTERN_BYTES})", text.len())));
        }
        let mut builder = RegexBuilder::new(&translated(full));
        let builder = builder.backtrack_limit(MAX_STEPS).delegate_size_limit(MAX_COMPILED_BYTES);
        let regex = builder.build().map_err(|e| wrong(e.to_string()))?;
        Ok(Self { regex, path: config.path.clone(), field })
    }

    fn captures<'t>(&self, name: &'t str) -> Result<Option<fancy_regex::Captures<'t>>> {
        let failed =
            |e| Error::field(&self.path, self.field, format!("{e} on {name}; expected a simpler pattern"));
        self.regex.captures(name).map_err(failed)
    }
}

/// A Python pattern as this crate's library writes it: `\Z` is `\z`, and in a class of characters nothing but `\`, `-`,
/// `^` and `]` means more than itself, where Rust knows classes in classes and operations on them.
fn translated(pattern: &str) -> String {
    let mut out = String::new();
    let mut chars = pattern.chars().peekable();
    // How many characters the class has so far, where there is one.
    let mut class: Option<usize> = None;
    while let Some(c) = chars.next() {
        let doubled = "&-~".contains(c) && chars.peek() == Some(&c);
        match class {
            None if c == '[' => {
                out.push(c);
                out.extend(chars.next_if_eq(&'^'));
                class = Some(0);
                continue;
            }
            Some(1..) if c == ']' => class = None,
            Some(_) if c == '[' || c == ']' || doubled => out.push('\\'),
            _ => {}
        }
        out.push(c);
        if c == '\\' {
            let escaped = chars.next();
            out.extend(escaped.map(|c| if c == 'Z' { 'z' } else { c }));
        }
        class = class.map(|count| count + 1);
    }
    out
}
