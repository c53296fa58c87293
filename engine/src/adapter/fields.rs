//! Typed reading of a JSON object's fields, with errors that name the file and the field.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::de::{Deserialize, DeserializeOwned, Deserializer, MapAccess, Visitor};
use serde_json::Value;

use crate::{Error, Result};

/// The fields of a JSON file that were not looked at yet.
pub(super) struct Fields<'a> {
    /// The file, for messages.
    pub path: &'a Path,
    /// Name and value of each; a reader removes what it read.
    pub values: BTreeMap<String, Value>,
}

/// A field that is either one string or a list of strings.
#[derive(Debug, PartialEq)]
pub(super) enum Strings {
    /// One string.
    One(String),
    /// A list.
    List(Vec<String>),
}

impl Strings {
    /// Whether Python would call it false.
    pub(super) fn is_empty(&self) -> bool {
        match self {
            Self::One(text) => text.is_empty(),
            Self::List(list) => list.is_empty(),
        }
    }
}

impl<'a> Fields<'a> {
    /// The fields of `text`, the content of `path`.
    ///
    /// # Errors
    /// [`Error::File`] when it is not a JSON object.
    pub(super) fn parse(path: &'a Path, text: &str) -> Result<Self> {
        let values = serde_json::from_str(text)
            .map_err(|e| Error::file(path, format!("{e}; expected a JSON object as PEFT writes it")))?;
        Ok(Self { path, values })
    }

    /// An [`Error::Field`] that says what was found and what would be accepted.
    pub(super) fn wrong(&self, name: &str, found: impl fmt::Display, expected: impl fmt::Display) -> Error {
        Error::field(self.path, name, format!("{found}, expected {expected}"))
    }

    /// The field's value; `None` where it is null or absent.
    ///
    /// # Errors
    /// [`Error::Field`] when it is not a `T`.
    pub(super) fn take<T: DeserializeOwned>(&mut self, name: &str, expected: &str) -> Result<Option<T>> {
        match self.values.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => {
                let found = short(&value);
                serde_json::from_value(value).map(Some).map_err(|_| self.wrong(name, found, expected))
            }
        }
    }

    /// As [`Fields::take`], for a string or a list of strings.
    pub(super) fn take_strings(&mut self, name: &str) -> Result<Option<Strings>> {
        match self.values.get(name) {
            Some(Value::String(_)) => Ok(self.take(name, "a string")?.map(Strings::One)),
            _ => Ok(self.take(name, "a string, a list of strings or null")?.map(Strings::List)),
        }
    }

    /// Whether a field that was set was removed: whether Python would call it true.
    pub(super) fn take_truth(&mut self, name: &str) -> bool {
        match self.values.remove(name) {
            None | Some(Value::Null) => false,
            Some(Value::Bool(value)) => value,
            Some(Value::Number(value)) => value.as_f64() != Some(0.0),
            Some(Value::String(value)) => !value.is_empty(),
            Some(Value::Array(value)) => !value.is_empty(),
            Some(Value::Object(value)) => !value.is_empty(),
        }
    }
}

/// A value as messages show it: not more than its beginning.
pub(super) fn short(value: &Value) -> String {
    const SHOWN: usize = 60;
    let text = value.to_string();
    match text.char_indices().nth(SHOWN) {
        None => text,
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

/// The entries of an object as the file orders them, which a [`Value`] forgets.
pub(super) struct Ordered(pub Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Ordered {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Ordered;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Ordered, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Ordered(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}
