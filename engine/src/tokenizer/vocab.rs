//! Tokenizers of models that ship only vocab.json and merges.txt. The rules are the family's, so the family
//! has to be known: byte-level BPE as in "Language Models are Unsupervised Multitask Learners" (GPT-2), with
//! what each family changed.

use super::error::{Error, invalid};
use super::files::{ID_LIMIT, Named, Side, VOCAB_LIMIT, read};
use super::{Ends, Loaded};
use serde_json::Value;
use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior};

/// Qwen2's split: letters and single digits apart, with contractions in any case.
const QWEN2_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Whose rules a vocabulary follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    /// GPT-2, DistilGPT2, DialoGPT: `<|endoftext|>` begins and ends.
    Gpt2,
    /// GPT-2's rules; `</s>` begins and ends, and is put before every input.
    Opt,
    /// NFC, an own split, no beginning token.
    Qwen2,
}

impl Family {
    fn detect(side: &Side, vocab: &Vocab) -> Result<Self, Error> {
        let class = side.get("tokenizer_class").and_then(Value::as_str).unwrap_or_default();
        let model = side.model_type().unwrap_or_default();
        // OPT uses GPT-2's class, so its model type goes first; where that is missing its vocabulary tells.
        let opt_like = !vocab.contains_key("<|endoftext|>") && vocab.get("</s>") == Some(&2);
        // These classes say only that the rules are in tokenizer.json.
        let class = match class.strip_suffix("Fast").unwrap_or(class) {
            "PreTrainedTokenizer" | "TokenizersBackend" => "",
            class => class,
        };
        match (class, model) {
            ("Qwen2Tokenizer", _) => Ok(Family::Qwen2),
            ("GPT2Tokenizer" | "", "opt") => Ok(Family::Opt),
            ("GPT2Tokenizer", "") if opt_like => Ok(Family::Opt),
            ("GPT2Tokenizer", _) | ("", "gpt2") => Ok(Family::Gpt2),
            ("", "") if opt_like && vocab.get("<pad>") == Some(&1) => Ok(Family::Opt),
            ("", "") if vocab.contains_key("<|endoftext|>") => Ok(Family::Gpt2),
            ("", model) if model.starts_with("qwen2") || model.starts_with("qwen3") => Ok(Family::Qwen2),
            _ => {
                let problem = format!(
                    "\"{class}\" (model_type \"{model}\" in config.json) does not say by which rules to read \
                     vocab.json and merges.txt; accepted: GPT2Tokenizer or Qwen2Tokenizer, model_type gpt2, \
                     opt or qwen2, or a tokenizer.json"
                );
                Err(invalid(&side.config_file, "tokenizer_class", problem))
            }
        }
    }
}

/// Reads vocab.json and merges.txt; `None` unless both are there.
pub(super) fn load(dir: &Path, side: &Side) -> Result<Option<Loaded>, Error> {
    let (vocab_file, merges_file) = (dir.join("vocab.json"), dir.join("merges.txt"));
    let texts = (read(&vocab_file, VOCAB_LIMIT)?, read(&merges_file, VOCAB_LIMIT)?);
    let (vocab_text, merges_text) = match texts {
        (Some(vocab), Some(merges)) => (vocab, merges),
        (None, None) => return Ok(None),
        (Some(_), None) => return Err(Error::Half { file: merges_file, other: "vocab.json" }),
        (None, Some(_)) => return Err(Error::Half { file: vocab_file, other: "merges.txt" }),
    };
    let mut vocab = parse_vocab(&vocab_file, &vocab_text)?;
    let merges = parse_merges(&merges_file, &merges_text, &vocab)?;
    let family = Family::detect(side, &vocab)?;

    let default = match family {
        Family::Gpt2 => Some("<|endoftext|>"),
        Family::Opt => Some("</s>"),
        Family::Qwen2 => None,
    };
    let or_default = |named: Named| match named {
        Named::Unsaid => default.map(str::to_owned),
        said => said.token(),
    };
    let bos = or_default(side.named("bos_token")?);
    let eos = or_default(side.named("eos_token")?);

    let added = added_tokens(side)?;
    // With their ids in the vocabulary the library takes these, where it would else count on from the end.
    for (&id, token) in &added {
        vocab.insert(token.content.clone(), id);
    }
    check_ids(&vocab_file, &vocab)?;
    let size = vocab.values().max().map_or(0, |&id| id as usize + 1);
    let model = BPE::builder().vocab_and_merges(vocab, merges).cache_capacity(0).build();
    let model =
        model.map_err(|e| invalid(&merges_file, "file", format!("{e}; accepted: merges of vocab.json")))?;

    let mut inner = tokenizers::Tokenizer::new(model);
    rules(&mut inner, family, side)?;
    let failed = |e: tokenizers::Error| invalid(&side.config_file, "added_tokens_decoder", e.to_string());
    inner.add_tokens(added.into_values()).map_err(failed)?;

    // Only OPT puts its beginning token before an input unasked.
    let ends = Ends {
        before: if family == Family::Opt { bos.clone() } else { None }.into_iter().collect(),
        ..Ends::default()
    };
    Ok(Some(Loaded { inner, file: vocab_file, size, bos, eos, ends }))
}

/// Sets the family's way from text to pieces and back.
fn rules(inner: &mut tokenizers::Tokenizer, family: Family, side: &Side) -> Result<(), Error> {
    let prefix_space = side.flag("add_prefix_space")?.unwrap_or(false);
    let wrong = |e: tokenizers::Error| invalid(&side.config_file, "tokenizer_class", e.to_string());
    if family == Family::Qwen2 {
        let pattern = SplitPattern::Regex(QWEN2_SPLIT.to_owned());
        let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false).map_err(wrong)?;
        let bytes = ByteLevel::new(prefix_space, true, false);
        let steps = vec![PreTokenizerWrapper::Split(split), PreTokenizerWrapper::ByteLevel(bytes)];
        inner.with_normalizer(Some(NFC)).map_err(wrong)?;
        inner.with_pre_tokenizer(Some(Sequence::new(steps)));
    } else {
        inner.with_pre_tokenizer(Some(ByteLevel::new(prefix_space, true, true)));
    }
    inner.with_decoder(Some(ByteLevel::default()));
    Ok(())
}

fn parse_vocab(file: &Path, text: &str) -> Result<Vocab, Error> {
    let shape = |e| invalid(file, "file", format!("{e}; accepted: one JSON object of token: id"));
    let vocab: Vocab = serde_json::from_str(text).map_err(shape)?;
    if vocab.is_empty() {
        return Err(invalid(file, "file", "no tokens; accepted: one JSON object of token: id"));
    }
    check_ids(file, &vocab)?;
    Ok(vocab)
}

/// Ids must be small and belong to one token each.
fn check_ids(file: &Path, vocab: &Vocab) -> Result<(), Error> {
    let mut seen = HashSet::with_capacity(vocab.len());
    for (token, &id) in vocab {
        if id >= ID_LIMIT || !seen.insert(id) {
            let problem = format!("id {id}; accepted: ids below {ID_LIMIT}, each for one token");
            return Err(invalid(file, format!("{token:?}"), problem));
        }
    }
    Ok(())
}

/// One pair a line, after an optional `#version` line; line ends may be LF or CRLF.
fn parse_merges(file: &Path, text: &str, vocab: &Vocab) -> Result<Merges, Error> {
    let mut merges = Merges::new();
    for (number, line) in (1..).zip(text.lines()) {
        if line.is_empty() || (number == 1 && line.starts_with("#version")) {
            continue;
        }
        let wrong = |problem| Err(invalid(file, format!("line {number}"), problem));
        let Some((left, right)) = line
            .split_once(' ')
            .filter(|(left, right)| !left.is_empty() && !right.is_empty() && !right.contains(' '))
        else {
            return wrong("accepted: two tokens with one space between them");
        };
        let known = [left, right].into_iter().all(|token| vocab.contains_key(token));
        if !known || !vocab.contains_key([left, right].concat().as_str()) {
            return wrong("accepted: two tokens of vocab.json that joined are a token of vocab.json");
        }
        merges.push((left.to_owned(), right.to_owned()));
    }
    Ok(merges)
}

/// The tokens beside vocab.json by id: added_tokens.json, refined by tokenizer_config.json's
/// added_tokens_decoder.
fn added_tokens(side: &Side) -> Result<BTreeMap<u32, AddedToken>, Error> {
    let mut added = BTreeMap::new();
    let file = side.dir.join("added_tokens.json");
    if let Some(text) = read(&file, VOCAB_LIMIT)? {
        let shape = |e| invalid(&file, "file", format!("{e}; accepted: one JSON object of token: id"));
        let tokens: BTreeMap<String, u32> = serde_json::from_str(&text).map_err(shape)?;
        let named = side.all_named()?;
        added.extend(tokens.into_iter().map(|(token, id)| {
            let special = named.contains(&token);
            (id, AddedToken::from(token, special))
        }));
    }
    let Some(decoder) = side.get("added_tokens_decoder") else { return Ok(added) };
    let wrong = |what: &str| {
        let problem =
            "accepted: an object of \"id\": {content, lstrip, rstrip, single_word, normalized, special}";
        invalid(&side.config_file, format!("added_tokens_decoder{what}"), problem)
    };
    for (key, value) in decoder.as_object().ok_or_else(|| wrong(""))? {
        let token = (|| {
            let flag = |name: &str, or: bool| value.get(name).map_or(Some(or), Value::as_bool);
            let special = flag("special", false)?;
            let token = AddedToken::from(value.get("content")?.as_str()?, special)
                .lstrip(flag("lstrip", false)?)
                .rstrip(flag("rstrip", false)?)
                .single_word(flag("single_word", false)?)
                .normalized(flag("normalized", !special)?);
            Some((key.parse().ok()?, token))
        })();
        let (id, token) = token.ok_or_else(|| wrong(&format!(".{key}")))?;
        added.insert(id, token);
    }
    Ok(added)
}
