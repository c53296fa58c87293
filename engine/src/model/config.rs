//! Typed, bounded access to the fields of a JSON file. Every error names the file, the field and what is accepted.

use std::fmt::Display;
use std::fs;
use std::io::Read;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// The fields of a JSON object: of a whole file, or of an object in it.
pub(crate) struct Fields {
    path: PathBuf,
    /// `text_config.` for the fields of that object; empty at the top.
    prefix: String,
    map: Map<String, Value>,
}

impl Fields {
    /// The object that the text of a file holds.
    pub(crate) fn parse(path: &Path, text: &[u8]) -> Result<Self> {
        let map =
            serde_json::from_slice(text).map_err(|e| Error::file(path, format!("not a JSON object: {e}")))?;
        Ok(Self { path: path.to_path_buf(), prefix: String::new(), map })
    }

    /// The object in the field `name`; `None` where it is absent or null.
    pub(super) fn object(&self, name: &str) -> Result<Option<Self>> {
        let map = self.read(name, "an object", |value| value.as_object().cloned())?;
        Ok(map.map(|map| Self { path: self.path.clone(), prefix: format!("{}{name}.", self.prefix), map }))
    }

    /// No fields, with the name under which errors would report them.
    pub(super) fn empty(&self, name: &str) -> Self {
        Self { path: self.path.clone(), prefix: format!("{}{name}.", self.prefix), map: Map::new() }
    }

    /// An error about the field `name`.
    pub(crate) fn error(&self, name: &str, reason: impl Display) -> Error {
        Error::field(&self.path, format!("{}{name}", self.prefix), reason)
    }

    /// The object as JSON text, with one field set.
    pub(super) fn with(&self, name: &str, value: Value) -> Result<String> {
        let mut map = self.map.clone();
        map.insert(name.into(), value);
        serde_json::to_string_pretty(&map).map_err(|error| self.error(name, error))
    }

    /// The names of all fields.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.map.keys().map(String::as_str)
    }

    /// Whether the field is there and null: some configs switch a default off with it.
    pub(crate) fn is_null(&self, name: &str) -> bool {
        self.map.get(name).is_some_and(Value::is_null)
    }

    /// A whole number in `range`; `None` where the field is absent or null, as for all typed fields below.
    pub(crate) fn size(&self, name: &str, range: RangeInclusive<usize>) -> Result<Option<usize>> {
        let expected = format!("a whole number from {} to {}", range.start(), range.end());
        self.read(name, &expected, |value| {
            value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| range.contains(n))
        })
    }

    /// As [`Self::size`], where an absent field means `default` and null means `None`.
    pub(super) fn size_or(
        &self,
        name: &str,
        range: RangeInclusive<usize>,
        default: Option<usize>,
    ) -> Result<Option<usize>> {
        Ok(self.size(name, range)?.or(if self.is_null(name) { None } else { default }))
    }

    /// A number above 0. (JSON has no NaN and no infinity.)
    pub(super) fn positive(&self, name: &str) -> Result<Option<f64>> {
        self.read(name, "a number above 0 in the range of f32", positive)
    }

    /// A list of `len` numbers above 0.
    pub(super) fn positives(&self, name: &str, len: usize) -> Result<Option<Vec<f64>>> {
        self.read(name, &format!("a list of {len} numbers above 0 in the range of f32"), |value| {
            let list = value.as_array().filter(|list| list.len() == len)?;
            list.iter().map(positive).collect()
        })
    }

    /// True or false.
    pub(crate) fn flag(&self, name: &str) -> Result<Option<bool>> {
        self.read(name, "true or false", Value::as_bool)
    }

    /// A string.
    pub(super) fn text(&self, name: &str) -> Result<Option<String>> {
        self.read(name, "a string", |value| value.as_str().map(str::to_owned))
    }

    /// A list of strings.
    pub(super) fn texts(&self, name: &str) -> Result<Option<Vec<String>>> {
        self.read(name, "a list of strings", |value| {
            value.as_array()?.iter().map(|x| x.as_str().map(str::to_owned)).collect()
        })
    }

    /// A token id, or a list of them.
    pub(super) fn ids(&self, name: &str) -> Result<Option<Vec<u32>>> {
        let id = |value: &Value| value.as_u64().and_then(|n| u32::try_from(n).ok());
        self.read(name, "a token id or a list of token ids", |value| match value {
            Value::Array(list) => list.iter().map(id).collect(),
            one => id(one).map(|id| vec![id]),
        })
    }

    /// Whether the field holds an object.
    pub(super) fn is_object(&self, name: &str) -> bool {
        self.map.get(name).is_some_and(Value::is_object)
    }

    /// What `read` makes of the field; an error that names what is `expected` where it makes nothing of it.
    pub(crate) fn read<T>(
        &self,
        name: &str,
        expected: &str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<T>> {
        match self.map.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match read(value) {
                Some(read) => Ok(Some(read)),
                None => Err(self.error(name, format!("{}; expected {expected}", shortened(value)))),
            },
        }
    }
}

/// A value as an error message shows it.
fn shortened(value: &Value) -> String {
    match value {
        Value::Array(list) => format!("a list of {} entries", list.len()),
        Value::Object(map) => format!("an object of {} fields", map.len()),
        Value::String(text) if text.len() > 60 => format!("a string of {} bytes", text.len()),
        other => other.to_string(),
    }
}

/// The bytes of a file that has to be a regular one of at most `limit` bytes; `None` where there is no such file.
pub(crate) fn read_bounded(path: &Path, limit: u64) -> Result<Option<Vec<u8>>> {
    let Some(len) = regular_file(path)? else { return Ok(None) };
    let too_long = || Error::file(path, format!("longer than the {limit} bytes that such a file may have"));
    if len > limit {
        return Err(too_long());
    }
    let file = fs::File::open(path).map_err(|e| Error::file(path, e))?;
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(|e| Error::file(path, e))?;
    if bytes.len() as u64 > limit { Err(too_long()) } else { Ok(Some(bytes)) }
}

/// The length of a regular file; `None` where nothing has that name. Opening anything else could block forever.
pub(super) fn regular_file(path: &Path) -> Result<Option<u64>> {
    match fs::metadata(path) {
        Ok(meta) if meta.is_file() => Ok(Some(meta.len())),
        Ok(_) => Err(Error::file(path, "not a regular file")),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::file(path, e)),
    }
}

/// A number above 0 that an f32 can be near.
fn positive(value: &Value) -> Option<f64> {
    value.as_f64().filter(|&x| x > 0.0 && (x as f32).is_finite())
}
