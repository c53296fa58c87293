//! tokenizer.json, checked before the `tokenizers` crate sees it: that crate trusts its input, and on a
//! damaged file some of its parts would panic or grow without bound.

use super::error::{Error, invalid};
use super::files::{ID_LIMIT, Side, VOCAB_LIMIT, read};
use super::{Ends, Loaded};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;
use std::collections::{HashMap, HashSet};
use std::path::Path;
use tokenizers::models::ModelWrapper;

const NORMALIZERS: &str = "Sequence, Prepend, Replace, NFC, NFD, NFKC, NFKD, Lowercase, Strip, StripAccents, \
                           BertNormalizer, Nmt, ByteLevel";
const PRE_TOKENIZERS: &str = "Sequence, ByteLevel, Split, Metaspace, Digits, Whitespace, WhitespaceSplit, \
                              Punctuation, BertPreTokenizer, UnicodeScripts";

/// How often longer than its input the output of all Replace steps together may be.
pub(super) const MAX_GROWTH: usize = 64;

/// The kind of the model, looked at first because it decides the form of the rest.
#[derive(Deserialize)]
struct Probe {
    model: ProbeModel,
}

#[derive(Deserialize)]
struct ProbeModel {
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(rename = "vocab")]
    _vocab: IgnoredAny,
}

#[derive(Deserialize)]
struct Content {
    model: Model,
    #[serde(default)]
    added_tokens: Vec<Added>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
}

#[derive(Deserialize)]
struct Model {
    vocab: HashMap<String, u32>,
    #[serde(default)]
    merges: Vec<Merge>,
    continuing_subword_prefix: Option<String>,
}

#[derive(Deserialize)]
struct Added {
    id: u32,
    content: String,
}

/// Merges are written as pairs, and by older versions as lines.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair(String, String),
    Line(String),
}

/// Reads tokenizer.json; `None` where there is none.
pub(super) fn load(dir: &Path, side: &Side) -> Result<Option<Loaded>, Error> {
    let file = dir.join("tokenizer.json");
    let Some(text) = read(&file, VOCAB_LIMIT)? else { return Ok(None) };
    let (size, ends) = check(&file, &text)?;

    let failed = |e: tokenizers::Error| {
        let problem = format!("{e}; accepted: tokenizer.json as the tokenizers library writes it");
        invalid(&file, "file", problem)
    };
    let mut inner: tokenizers::Tokenizer = text.parse().map_err(failed)?;
    // Settings of a training run, not of the model.
    inner.with_truncation(None).map_err(failed)?.with_padding(None);
    // What it adds is in `ends`; the rest of it moves offsets, which are not used.
    inner.with_post_processor(None::<tokenizers::PostProcessorWrapper>);
    // The crate's cache lives in the thread and would outlive the tokenizer.
    let mut model = inner.get_model().clone();
    if let ModelWrapper::BPE(bpe) = &mut model {
        bpe.resize_cache(0);
        // Random merges are for training.
        bpe.dropout = None;
    }
    inner.with_model(model);

    let (bos, eos) = (side.named("bos_token")?.token(), side.named("eos_token")?.token());
    Ok(Some(Loaded { inner, file, size, bos, eos, ends }))
}

/// Checks the whole file; returns one more than the largest id, and what goes around an input.
fn check(file: &Path, text: &str) -> Result<(usize, Ends), Error> {
    let shape = |e: serde_json::Error| {
        let problem = format!(
            "{e}; accepted: tokenizer.json as the tokenizers library writes it, with a model that has a vocab \
             of token: id and a list of merges"
        );
        invalid(file, "file", problem)
    };
    let probe: Probe = serde_json::from_str(text).map_err(shape)?;
    if !matches!(probe.model.kind.as_deref(), Some("BPE" | "WordLevel") | None) {
        let kind = probe.model.kind.unwrap_or_default();
        return Err(invalid(file, "model.type", format!("\"{kind}\"; accepted: BPE, WordLevel")));
    }
    let content: Content = serde_json::from_str(text).map_err(shape)?;
    let size = check_ids(file, &content)?;
    check_merges(file, &content.model)?;
    let mut growth = 1;
    check_steps(file, "normalizer", &content.normalizer, NORMALIZERS, &mut growth)?;
    check_steps(file, "pre_tokenizer", &content.pre_tokenizer, PRE_TOKENIZERS, &mut growth)?;
    let mut ends = Ends::default();
    add_ends(file, &content.post_processor, &mut ends)?;
    Ok((size, ends))
}

fn check_ids(file: &Path, content: &Content) -> Result<usize, Error> {
    let vocab = &content.model.vocab;
    if vocab.is_empty() && content.added_tokens.is_empty() {
        return Err(invalid(file, "model.vocab", "no tokens; accepted: an object of token: id"));
    }
    let mut seen = HashSet::with_capacity(vocab.len());
    for (token, &id) in vocab {
        if id >= ID_LIMIT || !seen.insert(id) {
            let problem = format!("id {id}; accepted: ids below {ID_LIMIT}, each for one token");
            return Err(invalid(file, format!("model.vocab {token:?}"), problem));
        }
    }
    // The library numbers new tokens on from the end of the vocabulary and ignores what the file says.
    let mut next = vocab.len();
    let mut fresh: HashMap<&str, u32> = HashMap::new();
    for Added { id, content } in content.added_tokens.iter().filter(|added| !added.content.is_empty()) {
        let given = vocab.get(content).or_else(|| fresh.get(content.as_str())).copied();
        let expected = given.map_or(next, |id| id as usize);
        if *id as usize != expected {
            let problem =
                format!("id {id}; accepted: {expected}, the id that the vocabulary gives to this token");
            return Err(invalid(file, format!("added_tokens {content:?}"), problem));
        }
        if given.is_none() {
            fresh.insert(content, *id);
            next += 1;
        }
    }
    let largest = seen.iter().chain(fresh.values()).max();
    Ok(largest.map_or(0, |&id| id as usize + 1))
}

/// Every merge must join two tokens to a third.
fn check_merges(file: &Path, model: &Model) -> Result<(), Error> {
    let prefix = model.continuing_subword_prefix.as_deref().unwrap_or_default();
    for (index, merge) in model.merges.iter().enumerate() {
        let pair = match merge {
            Merge::Pair(left, right) => Some((left.as_str(), right.as_str())),
            Merge::Line(line) if line.starts_with("#version") => continue,
            Merge::Line(line) => line.split_once(' ').filter(|(_, right)| !right.contains(' ')),
        };
        let known = pair.is_some_and(|(left, right)| {
            let rest = right.strip_prefix(prefix);
            let has = |token: &str| model.vocab.contains_key(token);
            has(left) && has(right) && rest.is_some_and(|rest| has(&[left, rest].concat()))
        });
        if !known {
            let problem = "accepted: a pair of tokens of model.vocab that joined are a token of model.vocab";
            return Err(invalid(file, format!("model.merges[{index}]"), problem));
        }
    }
    Ok(())
}

/// Allows the steps named in `accepted`, and Replace steps that do not blow a text up.
fn check_steps(
    file: &Path,
    field: &str,
    step: &Value,
    accepted: &str,
    growth: &mut usize,
) -> Result<(), Error> {
    if step.is_null() {
        return Ok(());
    }
    let kind = step["type"].as_str().unwrap_or_default();
    if !accepted.split(", ").any(|name| name == kind) {
        return Err(invalid(file, format!("{field}.type"), format!("\"{kind}\"; accepted: {accepted}")));
    }
    for list in ["normalizers", "pretokenizers"] {
        for step in step[list].as_array().into_iter().flatten() {
            check_steps(file, field, step, accepted, growth)?;
        }
    }
    if kind == "Replace" {
        let content = step["content"].as_str().unwrap_or_default();
        // A regular expression can match between any two bytes.
        let pattern = step["pattern"]["String"]
            .as_str()
            .map_or(Some(1), |text| (!text.is_empty()).then_some(text.len()));
        let grown = pattern.map(|length| growth.saturating_mul(content.len().div_ceil(length).max(1)));
        *growth = grown.filter(|&grown| grown <= MAX_GROWTH).ok_or_else(|| {
            let problem =
                format!("accepted: a pattern with text, and all together at most {MAX_GROWTH}-fold growth");
            invalid(file, format!("{field} {step}"), problem)
        })?;
    }
    Ok(())
}

/// Collects what a post-processor puts around a single text.
fn add_ends(file: &Path, processor: &Value, ends: &mut Ends) -> Result<(), Error> {
    let wrong = || {
        let problem = "accepted: null, ByteLevel, TemplateProcessing whose single has one sequence A, \
                       BertProcessing, RobertaProcessing, or a Sequence of these";
        invalid(file, format!("post_processor {processor}"), problem)
    };
    let text = |value: &Value| value.as_str().map(str::to_owned);
    match processor["type"].as_str() {
        None if processor.is_null() => {}
        Some("ByteLevel") => {}
        Some("Sequence") => {
            for processor in processor["processors"].as_array().into_iter().flatten() {
                add_ends(file, processor, ends)?;
            }
        }
        Some("TemplateProcessing") => {
            let (mut before, mut after, mut seen) = (Vec::new(), Vec::new(), false);
            for piece in processor["single"].as_array().ok_or_else(wrong)? {
                if piece["Sequence"]["id"] == "A" && !seen {
                    seen = true;
                    continue;
                }
                let name = piece["SpecialToken"]["id"].as_str().ok_or_else(wrong)?;
                let tokens = processor["special_tokens"][name]["tokens"].as_array().ok_or_else(wrong)?;
                let side = if seen { &mut after } else { &mut before };
                for token in tokens {
                    side.push(text(token).ok_or_else(wrong)?);
                }
            }
            if !seen {
                return Err(wrong());
            }
            ends.before.splice(0..0, before);
            ends.after.extend(after);
        }
        Some("BertProcessing" | "RobertaProcessing") => {
            ends.before.insert(0, text(&processor["cls"][0]).ok_or_else(wrong)?);
            ends.after.push(text(&processor["sep"][0]).ok_or_else(wrong)?);
        }
        _ => return Err(wrong()),
    }
    Ok(())
}
