//! Files that a user names, read up to a bound.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use crate::error::{Error, Result};

/// A file of at most so many bytes.
pub(crate) fn read(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let failed = |error: io::Error| Error::file(path, error);
    let mut bytes = Vec::new();
    // A device says nothing of its size, and may have no end.
    let file = File::open(path).map_err(failed)?;
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > limit {
        return Err(Error::file(path, format!("more than {limit} bytes, the most that is read")));
    }
    Ok(bytes)
}

/// A file of UTF-8, likewise.
pub(crate) fn read_text(path: &Path, limit: u64) -> Result<String> {
    let text = String::from_utf8(read(path, limit)?);
    text.map_err(|error| Error::file(path, format!("not UTF-8: {error}")))
}
