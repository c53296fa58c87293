//! What is wrong with a profile, a grid or a policy.

/// An input that cannot be used; the message names it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name}: {reason}")]
pub struct Error {
    name: String,
    reason: String,
}

impl Error {
    /// What is wrong with the thing of this name.
    pub fn new(name: impl ToString, reason: impl ToString) -> Self {
        Self { name: name.to_string(), reason: reason.to_string() }
    }
}

/// This crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;
