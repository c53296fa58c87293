//! The one error type of the engine. Every message names the file, field or value and what would be accepted.

use std::path::{Path, PathBuf};

/// What can go wrong in the engine. None of these leaves the engine unusable, except [`Error::Device`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file is missing, unreadable or not what it claims to be.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong and what would be accepted.
        reason: String,
    },
    /// A field, tensor or entry of a file is not acceptable.
    #[error("{}: {field}: {reason}", path.display())]
    Field {
        /// The file.
        path: PathBuf,
        /// The field, tensor or entry in it.
        field: String,
        /// What is wrong and what would be accepted.
        reason: String,
    },
    /// A value that the caller passed is not acceptable.
    #[error("{name}: {reason}")]
    Value {
        /// The argument or option.
        name: String,
        /// What is wrong and what would be accepted.
        reason: String,
    },
    /// The device failed, is missing, or is too small for what was asked of it.
    #[error("device {device}: {reason}")]
    Device {
        /// The device's name.
        device: String,
        /// What happened.
        reason: String,
    },
    /// Everything that was asked for is taken; it may be there later.
    #[error("busy: {0}")]
    Busy(String),
    /// The service ended before the request did.
    #[error("stopped: {0}")]
    Stopped(String),
    /// The tokenizer's files or input.
    #[error(transparent)]
    Tokenizer(#[from] crate::tokenizer::Error),
}

/// The engine's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An [`Error::File`].
    pub fn file(path: impl AsRef<Path>, reason: impl ToString) -> Self {
        Self::File { path: path.as_ref().to_path_buf(), reason: reason.to_string() }
    }

    /// An [`Error::Field`].
    pub fn field(path: impl AsRef<Path>, field: impl ToString, reason: impl ToString) -> Self {
        Self::Field {
            path: path.as_ref().to_path_buf(),
            field: field.to_string(),
            reason: reason.to_string(),
        }
    }

    /// An [`Error::Value`].
    pub fn value(name: impl ToString, reason: impl ToString) -> Self {
        Self::Value { name: name.to_string(), reason: reason.to_string() }
    }

    /// An [`Error::Device`].
    pub fn device(device: impl ToString, reason: impl ToString) -> Self {
        Self::Device { device: device.to_string(), reason: reason.to_string() }
    }
}
