//! Reads the small files around a tokenizer, with limits.

use super::error::{Error, invalid};
use serde_json::{Map, Value};
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

/// Largest tokenizer.json, vocab.json or merges.txt read, in bytes (the largest in wide use has 34 MB).
pub(super) const VOCAB_LIMIT: u64 = 64 << 20;
/// Largest configuration file or template read, in bytes.
pub(super) const CONFIG_LIMIT: u64 = 4 << 20;
/// Ids must stay below this. No real vocabulary comes near it, and tables by id stay small.
pub(super) const ID_LIMIT: u32 = 1 << 24;

/// The text of `file`, or `None` where there is no such file.
pub(super) fn read(file: &Path, limit: u64) -> Result<Option<String>, Error> {
    let failed = |source| Error::Read { file: file.to_owned(), source };
    // Asked before opening, because opening a pipe would wait for a writer.
    let meta = match fs::metadata(file) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        other => other.map_err(failed)?,
    };
    if !meta.is_file() {
        return Err(failed(std::io::Error::new(ErrorKind::InvalidInput, "not a regular file")));
    }
    let mut text = String::new();
    // One byte past the limit tells a file that grew (or reports no size) from one that fits.
    let read = if meta.len() > limit {
        meta.len()
    } else {
        File::open(file).map_err(failed)?.take(limit + 1).read_to_string(&mut text).map_err(failed)? as u64
    };
    if read > limit {
        return Err(Error::TooLarge { file: file.to_owned(), bytes: read, limit });
    }
    Ok(Some(text))
}

/// The JSON object in `file`; empty where there is no such file.
fn object(file: &Path) -> Result<Map<String, Value>, Error> {
    let Some(text) = read(file, CONFIG_LIMIT)? else { return Ok(Map::new()) };
    serde_json::from_str(&text).map_err(|e| invalid(file, "file", format!("{e}; accepted: a JSON object")))
}

/// The configuration files beside a tokenizer. Every one of them may be missing.
pub(super) struct Side {
    pub dir: PathBuf,
    pub config_file: PathBuf,
    config: Map<String, Value>,
    special: Map<String, Value>,
    model_type: Option<String>,
}

/// What the files say of a named special token such as `bos_token`.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Named {
    /// Not mentioned: the family's default holds.
    Unsaid,
    /// Explicitly none.
    Off,
    /// This token.
    Token(String),
}

impl Named {
    pub(super) fn token(self) -> Option<String> {
        match self {
            Named::Token(token) => Some(token),
            Named::Unsaid | Named::Off => None,
        }
    }
}

impl Side {
    pub(super) fn read(dir: &Path) -> Result<Self, Error> {
        let config_file = dir.join("tokenizer_config.json");
        let model = object(&dir.join("config.json"))?;
        Ok(Side {
            dir: dir.to_owned(),
            config: object(&config_file)?,
            config_file,
            special: object(&dir.join("special_tokens_map.json"))?,
            model_type: model.get("model_type").and_then(Value::as_str).map(str::to_owned),
        })
    }

    /// `model_type` of config.json.
    pub(super) fn model_type(&self) -> Option<&str> {
        self.model_type.as_deref()
    }

    /// A field of tokenizer_config.json; `null` counts as missing.
    pub(super) fn get(&self, field: &str) -> Option<&Value> {
        self.config.get(field).filter(|value| !value.is_null())
    }

    /// A true/false field of tokenizer_config.json.
    pub(super) fn flag(&self, field: &str) -> Result<Option<bool>, Error> {
        let Some(value) = self.get(field) else { return Ok(None) };
        let wrong = || invalid(&self.config_file, field, format!("{value}; accepted: true or false"));
        value.as_bool().map(Some).ok_or_else(wrong)
    }

    /// A named special token: tokenizer_config.json first, then special_tokens_map.json.
    pub(super) fn named(&self, name: &str) -> Result<Named, Error> {
        let (file, value) = match (self.config.get(name), self.special.get(name)) {
            (Some(value), _) => (self.config_file.clone(), value),
            (None, Some(value)) => (self.dir.join("special_tokens_map.json"), value),
            (None, None) => return Ok(Named::Unsaid),
        };
        match content(value) {
            Some(token) => Ok(Named::Token(token.to_owned())),
            None if value.is_null() => Ok(Named::Off),
            None => {
                let problem = "accepted: a string, an object with the string \"content\", or null";
                Err(invalid(&file, name, problem))
            }
        }
    }

    /// Every special token the files name, whatever its role.
    pub(super) fn all_named(&self) -> Result<Vec<String>, Error> {
        const ROLES: [&str; 7] =
            ["bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token"];
        let mut tokens = Vec::new();
        for role in ROLES {
            tokens.extend(self.named(role)?.token());
        }
        for list in ["additional_special_tokens", "extra_special_tokens"] {
            let values = [self.get(list), self.special.get(list)];
            for value in values.into_iter().flatten().filter_map(Value::as_array).flatten() {
                tokens.extend(content(value).map(str::to_owned));
            }
        }
        Ok(tokens)
    }
}

/// The text of a token given as a string or as an object with `content`.
fn content(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}
